// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useSignal, type Signal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { follow } from '../api/stream';
import { keepJob, refreshJob } from '../state/jobs';
import { foldSteps, newSteps, type Steps } from './job_steps';

/** The steps of a job from its beginning, live; the job itself is kept up to date too. */
export function useJobSteps(id: string, onError: (error: unknown) => void, onEnd?: () => void): Signal<Steps> {
  const steps = useSignal<Steps>(newSteps());
  useEffect(() => {
    steps.value = newSteps();
    const seen = new Map<string, number>();
    refreshJob(id).catch(onError);
    return follow(`jobs/${encodeURIComponent(id)}/events`, {
      onArrived: ({ events, jobs }) => {
        jobs.forEach(keepJob);
        // A resumed stream may repeat what is shown.
        const fresh = events.filter((event) => {
          if (event.seq <= (seen.get(event.run) ?? 0)) return false;
          seen.set(event.run, event.seq);
          return true;
        });
        if (fresh.length > 0) steps.value = foldSteps(steps.peek(), fresh);
      },
      // Its result is there only now.
      onEnd: () => void refreshJob(id).then(onEnd, onError),
    });
  }, [id]);
  return steps;
}
