/** Reads one text file out of a ZIP archive that lies behind other data, as the labels lie behind a model. */

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const END_SIZE = 22;
const ENTRY_SIZE = 46;
const LOCAL_SIZE = 30;
const LONGEST_COMMENT = 0xffff;
const STORED = 0;
const DEFLATED = 8;

/** The text of an archive's file, or `null` without an archive or without that file. */
export async function readText(content: Uint8Array, name: string): Promise<string | null> {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const end = findEnd(view);
  if (end === null) return null;
  const [count, size, offset] = [
    view.getUint16(end + 10, true),
    view.getUint32(end + 12, true),
    view.getUint32(end + 16, true),
  ];
  // Some writers count offsets from the archive's start, others from the file's; the directory ends where `end` begins.
  const start = end - size - offset;
  let entry = end - size;
  try {
    for (let index = 0; index < count && view.getUint32(entry, true) === ENTRY; index++) {
      const nameLength = view.getUint16(entry + 28, true);
      const entryName = new TextDecoder().decode(content.subarray(entry + ENTRY_SIZE, entry + ENTRY_SIZE + nameLength));
      if (entryName === name) return await unpack(content, view, entry, start);
      entry += ENTRY_SIZE + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
    }
  } catch {
    // A damaged archive is as good as none: the model itself may be whole.
  }
  return null;
}

function findEnd(view: DataView): number | null {
  const lowest = Math.max(0, view.byteLength - END_SIZE - LONGEST_COMMENT);
  for (let at = view.byteLength - END_SIZE; at >= lowest; at--) {
    if (view.getUint32(at, true) === END) return at;
  }
  return null;
}

async function unpack(content: Uint8Array, view: DataView, entry: number, start: number): Promise<string | null> {
  const method = view.getUint16(entry + 10, true);
  const size = view.getUint32(entry + 20, true);
  const local = start + view.getUint32(entry + 42, true);
  const data = local + LOCAL_SIZE + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  const packed = content.slice(data, data + size);
  if (method === STORED) return new TextDecoder().decode(packed);
  if (method !== DEFLATED) return null;
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).text();
}
