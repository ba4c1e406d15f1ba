// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useState } from 'preact/hooks';
import { api, signedOut } from '../api/client';
import { role } from '../state/session';
import { Failure } from '../ui/parts';

export function SignInView() {
  const [error, setError] = useState<unknown>(null);
  const [isBusy, setBusy] = useState(false);
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    setBusy(true);
    try {
      const session = await api.signIn(String(form.get('token') ?? '').trim());
      role.value = session.role ?? 'read';
      signedOut.value = false;
    } catch (failure) {
      setError(failure);
    }
    setBusy(false);
  };
  return (
    <main class="sign-in" id="main">
      <form class="card" onSubmit={(e) => void submit(e)}>
        <h1>magi.llama console</h1>
        <label>
          Token
          <input name="token" type="password" autocomplete="current-password" required autofocus spellcheck={false} />
        </label>
        <p class="muted">
          <code>magi-llama-console token NAME</code> makes one on the console's host; the demo has written one into <code>.cache/demo/console.token</code>.
        </p>
        <Failure error={error} />
        <div class="actions"><button class="primary" type="submit" disabled={isBusy}>Sign in</button></div>
      </form>
    </main>
  );
}
