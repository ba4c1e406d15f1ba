// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useEffect, useState } from 'preact/hooks';
import { api } from '../api/client';
import { link } from '../router';
import { isActive, jobIds, jobSignal, refreshJob } from '../state/jobs';
import { mayOperate } from '../state/session';
import { useShortcuts } from '../state/shortcuts';
import { Card, Copy, Empty, Failure, Log, Time } from '../ui/parts';

/** The end of a server's own log, which a status job reads on its host. */
export function LogCard({ host, name, lines, asOf, onRead }: {
  host: string; name: string; lines: string[] | null; asOf: string | null; onRead: () => void;
}) {
  const [id, setId] = useState('');
  const [error, setError] = useState<unknown>(null);
  void jobIds.value; // A job that is not known yet is in the list once it is.
  const job = id === '' ? undefined : jobSignal(id)?.value;
  const isReading = id !== '' && (job === undefined || isActive(job));
  useEffect(() => {
    if (job && !isActive(job)) onRead();
  }, [job?.state]);
  const read = (): void => {
    if (isReading) return;
    setError(null);
    api.startJob({ verb: 'status', limit: [host], output_log: [name] }).then((started) => {
      setId(started);
      return refreshJob(started);
    }).catch(setError);
  };
  useShortcuts(mayOperate.value ? [{ keys: 'l', label: 'Read the log of this server', run: read }] : [], [host, name, mayOperate.value, isReading]);
  return (
    <Card title="Log since its start" extra={
      <span class="actions">
        {lines !== null && <span class="muted">read <Time at={asOf} /></span>}
        {lines !== null && <Copy text={lines.join('\n')} />}
        {mayOperate.value && <button type="button" onClick={read} disabled={isReading}>{isReading ? 'Reading…' : 'Read it now'}</button>}
      </span>
    }>
      <Failure error={error} />
      {job && !isActive(job) && job.state !== 'finished' && <p class="notice bad"><a href={link(['job', id])}>The job that reads it</a> has {job.state}.</p>}
      {lines === null ? <Empty>{mayOperate.value ? 'It has not been read yet.' : 'Only operators see it.'}</Empty> : <Log lines={lines} label={`Log of ${name}`} follow />}
    </Card>
  );
}
