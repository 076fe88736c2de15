/** An error whose text is meant for the reader of the page: what was expected, and what was received. */
export class Refusal extends Error {}

/** The text of anything that was thrown. */
export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
