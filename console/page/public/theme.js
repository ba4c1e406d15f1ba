// Runs before the first paint, so that a chosen theme does not flash. The module script comes later.
try {
  const theme = localStorage.getItem('magi.theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch (error) {
  // Storage is off: the system's theme is used.
}
