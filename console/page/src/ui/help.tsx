// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { signal } from '@preact/signals';
import { useLayoutEffect, useRef } from 'preact/hooks';
import { setShortcutsOff, shortcuts, shortcutsOff } from '../state/shortcuts';

export const helpOpen = signal(false);

/** Every key that does something in this view. */
export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    if (helpOpen.value) dialog.current?.showModal();
  }, [helpOpen.value]);
  if (!helpOpen.value) return null;
  const close = (): void => {
    helpOpen.value = false;
  };
  return (
    <dialog ref={dialog} onClose={close} aria-labelledby="help-title">
      <h2 id="help-title">Keyboard</h2>
      <dl class="keys">
        {shortcuts.value.map((shortcut) => (
          <div key={shortcut.keys + shortcut.label}>
            <dt>{shortcut.keys.split(' ').map((key) => <kbd key={key}>{key}</kbd>)}</dt>
            <dd>{shortcut.label}</dd>
          </div>
        ))}
        <div><dt><kbd>Tab</kbd><kbd>Enter</kbd></dt><dd>Everything else: move, and do</dd></div>
      </dl>
      <label class="check">
        <input type="checkbox" checked={shortcutsOff.value} onChange={(e) => setShortcutsOff(e.currentTarget.checked)} />
        Switch single-key shortcuts off
      </label>
      <div class="actions"><button type="button" class="primary" onClick={close} autofocus>Close</button></div>
    </dialog>
  );
}
