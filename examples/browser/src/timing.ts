/** Latencies of several models, measured in turn, so that other load of the machine hits all alike. */

import type {Classifier} from "./model";

export const ROUNDS = 20;
/** The first runs prepare weights, and the browser compiles WebAssembly better after a while. */
const WARM_UP_MS = 50;
const WARM_UP_RUNS = 3;
/** Browsers round their clock to 0.1 ms or even 1 ms; short runs are timed several at once. */
const SHORTEST_MS = 10;
const MOST_AT_ONCE = 1000;

/** The median time of a run of each model, in milliseconds. */
export async function measure(models: Classifier[]): Promise<number[]> {
  const runs: number[] = [];
  for (const model of models) runs.push(runsAtOnce(await warmUp(model)));
  const times: number[][] = models.map(() => []);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, model] of models.entries()) times[index].push(await model.time(runs[index]));
    await new Promise((resolve) => setTimeout(resolve)); // the page stays usable
  }
  return times.map(median);
}

/** Runs a model for a while; returns about how many milliseconds a run takes. */
async function warmUp(model: Classifier): Promise<number> {
  const end = performance.now() + WARM_UP_MS;
  let estimate: number;
  do estimate = await model.time(WARM_UP_RUNS);
  while (performance.now() < end);
  return estimate;
}

function runsAtOnce(estimate: number): number {
  // A coarse clock may have seen no time pass at all.
  return Math.max(1, Math.min(MOST_AT_ONCE, Math.ceil(SHORTEST_MS / Math.max(estimate, 1e-3))));
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
