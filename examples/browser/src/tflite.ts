/**
 * What a .tflite file says about itself: its input and output, the range of its pixels and the names of its classes.
 *
 * LiteRT.js tells neither scales of integers nor metadata, and knows fewer types than the format has. So the file, a
 * flatbuffer, is read here; the numbers of fields are those of TensorFlow's schema.fbs and metadata_schema.fbs.
 */

import {Refusal, message} from "./errors";
import {readText} from "./zip";

const TYPES = ["float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8"];
const LABELS = "labels.txt";

export interface TensorInfo {
  dtype: string;
  shape: number[];
  /** `real = (integer − zero) · scale`; a scale of 0 stands for a tensor that is not quantised. */
  scale: number;
  zero: number;
}

export interface FileInfo {
  input: TensorInfo;
  output: TensorInfo;
  /** Lowest and highest value of a pixel. */
  range: [number, number];
  /** `null` where the file has none. */
  classNames: string[] | null;
}

/**
 * Reads the description of a model with one input and one output.
 *
 * @throws Refusal for anything else.
 */
export async function readInfo(content: Uint8Array, name: string): Promise<FileInfo> {
  if (ascii(content, 4, 8) !== "TFL3") {
    throw new Refusal(`Expected a LiteRT model (.tflite). Received: ${name}, ${described(content)}`);
  }
  let inputs: TensorInfo[], outputs: TensorInfo[], range: [number, number] | null;
  try {
    const model = root(content);
    const graph = model.tables(2)[0];
    const tensors = graph.tables(0).map(tensorInfo);
    inputs = graph.integers(1).map((index) => tensors[index]);
    outputs = graph.integers(2).map((index) => tensors[index]);
    range = pixelRange(model);
  } catch (error) {
    throw new Refusal(`Expected a whole LiteRT model. Received: ${name}, which is damaged (${message(error)})`);
  }
  if (inputs.length !== 1 || outputs.length !== 1) {
    const received = `${inputs.length} inputs and ${outputs.length} outputs`;
    throw new Refusal(`Expected a model with one input and one output. Received: ${name}: ${received}`);
  }
  const labels = await readText(content, LABELS);
  return {input: inputs[0], output: outputs[0], range: range ?? [0, 255], classNames: labels ? lines(labels) : null};
}

/** The lines of a text, without an empty last one. */
export function lines(text: string): string[] {
  return text.replace(/\r?\n$/, "").split(/\r?\n/);
}

function described(content: Uint8Array): string {
  return content.length === 0 ? "an empty file" : `${content.length} bytes that begin with “${ascii(content, 0, 8)}”`;
}

function ascii(content: Uint8Array, start: number, end: number): string {
  return Array.from(content.subarray(start, end), (byte) =>
    byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·",
  ).join("");
}

function tensorInfo(tensor: Table): TensorInfo {
  const quantization = tensor.table(4);
  const scales = quantization?.floats(2) ?? [];
  return {
    dtype: TYPES[tensor.byte(1)] ?? "another type",
    shape: tensor.integers(0),
    // Scales per channel occur in weights only.
    scale: scales.length === 1 ? scales[0] : 0,
    zero: quantization?.firstLong(3) ?? 0,
  };
}

/** Statistics of the input in the metadata: `stats` of the first `TensorMetadata` of the first subgraph. */
function pixelRange(model: Table): [number, number] | null {
  const entry = model.tables(6).find((metadata) => metadata.text(0) === "TFLITE_METADATA");
  const bytes = entry && model.tables(4)[entry.unsigned(1)].bytes(0);
  if (!bytes) return null;
  const stats = root(bytes).tables(3)[0]?.tables(2)[0]?.table(5);
  const [low, high] = [stats?.floats(1)[0], stats?.floats(0)[0]];
  return low === undefined || high === undefined || !(low < high) ? null : [low, high];
}

function root(content: Uint8Array): Table {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  return new Table(view, view.getUint32(0, true));
}

/** A table of a flatbuffer: fields by their numbers; an absent field reads as 0, nothing or an empty list. */
class Table {
  constructor(
    private readonly view: DataView,
    private readonly at: number,
  ) {}

  byte(field: number): number {
    const place = this.place(field);
    return place ? this.view.getInt8(place) : 0;
  }

  unsigned(field: number): number {
    const place = this.place(field);
    return place ? this.view.getUint32(place, true) : 0;
  }

  table(field: number): Table | null {
    const place = this.place(field);
    return place ? new Table(this.view, this.follow(place)) : null;
  }

  tables(field: number): Table[] {
    return this.vector(field, 4, (place) => new Table(this.view, this.follow(place)));
  }

  integers(field: number): number[] {
    return this.vector(field, 4, (place) => this.view.getInt32(place, true));
  }

  floats(field: number): number[] {
    return this.vector(field, 4, (place) => this.view.getFloat32(place, true));
  }

  firstLong(field: number): number {
    return this.vector(field, 8, (place) => Number(this.view.getBigInt64(place, true)))[0] ?? 0;
  }

  bytes(field: number): Uint8Array | null {
    const place = this.place(field);
    if (!place) return null;
    const start = this.follow(place);
    return new Uint8Array(this.view.buffer, this.view.byteOffset + start + 4, this.view.getUint32(start, true));
  }

  text(field: number): string {
    return new TextDecoder().decode(this.bytes(field) ?? new Uint8Array());
  }

  /** Where the value of a field lies, by the table's list of offsets; 0 for an absent one. */
  private place(field: number): number {
    const offsets = this.at - this.view.getInt32(this.at, true);
    const entry = 4 + 2 * field;
    if (entry >= this.view.getUint16(offsets, true)) return 0;
    const offset = this.view.getUint16(offsets + entry, true);
    return offset && this.at + offset;
  }

  private follow(place: number): number {
    return place + this.view.getUint32(place, true);
  }

  private vector<T>(field: number, size: number, read: (place: number) => T): T[] {
    const place = this.place(field);
    if (!place) return [];
    const start = this.follow(place);
    const length = this.view.getUint32(start, true);
    // A damaged length must not ask for more than there is.
    if (start + 4 + length * size > this.view.byteLength) throw new RangeError("a list beyond its end");
    return Array.from({length}, (_, index) => read(start + 4 + index * size));
  }
}
