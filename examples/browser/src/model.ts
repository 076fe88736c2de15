/** A loaded model: checks of what the page can run, pixels in, probabilities out. */

import {loadAndCompile, loadLiteRt, Tensor, type CompiledModel} from "@litertjs/core";
import {Refusal, message} from "./errors";
import {prepare, type Picture, type Pixels} from "./image";
import {readInfo, type FileInfo, type TensorInfo} from "./tflite";

/** What LiteRT.js passes to a model and takes from it. */
const DTYPES = ["float32", "uint8"];
/** How far from 1 probabilities may add up, with outputs in 8 bits. */
const ROUNDING = 0.1;

/** Loads the WebAssembly runtime that is served beside the page. */
export async function startRuntime(): Promise<void> {
  const folder = new URL("litert/", document.baseURI).href;
  try {
    await loadLiteRt(folder);
  } catch (error) {
    const received = error instanceof Event ? "a file that did not load" : message(error);
    throw new Refusal(`Expected LiteRT.js' WebAssembly files in ${folder}. Received: ${received}`);
  }
}

export class Classifier {
  private constructor(
    readonly name: string,
    readonly bytes: number,
    readonly info: FileInfo,
    private readonly compiled: CompiledModel,
  ) {}

  /**
   * Compiles a model for the processor.
   *
   * @throws Refusal for a file that is no model, or a model that this page cannot feed or LiteRT.js cannot run.
   */
  static async load(content: Uint8Array, name: string): Promise<Classifier> {
    const info = await readInfo(content, name);
    check(info, name);
    try {
      const compiled = await loadAndCompile(content, {accelerator: "wasm"});
      return new Classifier(name, content.length, info, compiled);
    } catch (error) {
      throw new Refusal(`Expected a model that LiteRT.js can run. Received: ${name}: ${message(error)}`);
    }
  }

  /** How many classes there are. */
  get classes(): number {
    return this.info.output.shape.at(-1)!;
  }

  /** The name of a class: from the file or given later; otherwise its number. */
  className(index: number): string {
    return this.info.classNames?.[index] ?? String(index);
  }

  /** @throws Refusal for another number of names than classes. */
  set classNames(names: string[]) {
    if (names.length !== this.classes) {
      throw new Refusal(`Expected ${this.classes} class names, one a line. Received: ${names.length}`);
    }
    this.info.classNames = names;
  }

  /** A picture in the model's size. */
  pixels(picture: Picture): Pixels {
    const [, height, width, channels] = this.info.input.shape;
    return prepare(picture, height, width, channels);
  }

  /** One probability per class. */
  async classify(picture: Picture): Promise<number[]> {
    const input = this.tensor(this.pixels(picture).values);
    try {
      const [output] = await this.compiled.run(input);
      const values = Array.from(await output.data());
      output.delete();
      const {scale, zero} = this.info.output;
      return probabilities(scale ? values.map((value) => (value - zero) * scale) : values);
    } finally {
      input.delete();
    }
  }

  /** Runs the model again and again on one grey picture; returns milliseconds a run. */
  async time(runs: number): Promise<number> {
    const input = this.tensor(new Uint8Array(this.info.input.shape.reduce((a, b) => a * b)).fill(128));
    try {
      const start = performance.now();
      for (let run = 0; run < runs; run++) {
        for (const output of await this.compiled.run(input)) output.delete();
      }
      return (performance.now() - start) / runs;
    } finally {
      input.delete();
    }
  }

  /** Frees the model's memory, which the browser does not do by itself. */
  delete(): void {
    this.compiled.delete();
  }

  private tensor(pixels: Uint8Array): Tensor {
    const {input, range} = this.info;
    const [low, high] = range;
    const real = Float32Array.from(pixels, (pixel) => low + (pixel * (high - low)) / 255);
    if (input.dtype === "float32") return new Tensor(real, input.shape);
    const {scale, zero} = input;
    // Uint8ClampedArray rounds and clips.
    const integers = Uint8ClampedArray.from(real, (value) => (scale ? value / scale + zero : value));
    return new Tensor(new Uint8Array(integers.buffer), input.shape);
  }
}

function check({input, output}: FileInfo, name: string): void {
  const [batch, height, width, channels] = input.shape;
  if (input.shape.length !== 4 || batch !== 1 || height < 1 || width < 1 || ![1, 3].includes(channels)) {
    const expected = "Expected a model of one image, (1, height, width, 1 or 3)";
    throw new Refusal(`${expected}. Received: ${name}: an input of shape (${input.shape.join(", ")})`);
  }
  const size = output.shape.reduce((a, b) => a * b, 1);
  if (output.shape.length === 0 || size < 1 || size !== output.shape.at(-1)) {
    const received = `an output of shape (${output.shape.join(", ")})`;
    throw new Refusal(`Expected a model with one score per class, (1, classes). Received: ${name}: ${received}`);
  }
  checkType(input, "input", name);
  checkType(output, "output", name);
}

function checkType({dtype}: TensorInfo, what: string, name: string): void {
  if (DTYPES.includes(dtype)) return;
  const expected = `Expected ${what}s of ${DTYPES.join(" or ")}, which LiteRT.js has`;
  const hint = "elrt-export makes such files with --io_dtype=float32 or uint8, also of an int8 model";
  throw new Refusal(`${expected}. Received: ${name}: ${what} of ${dtype}. (${hint}.)`);
}

/** Scores as they are where they are probabilities; the softmax of others, of a model that ends in logits. */
function probabilities(scores: number[]): number[] {
  const sum = scores.reduce((total, score) => total + score, 0);
  if (scores.every((score) => score >= 0 && score <= 1) && Math.abs(sum - 1) < ROUNDING) return scores;
  const highest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - highest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}
