/**
 * Pictures as a model takes them, as examples/classify.py prepares them with Pillow.
 *
 * A canvas resizes differently in every browser, and top classes would differ with it. So the central part is resized
 * here by Pillow's rules: a triangle filter with weights in fixed point, rows first, 8 bits between the two passes.
 * Pillow 13 takes columns first where that is cheaper, which rounds some pixels to the next level.
 */

import {Refusal, message} from "./errors";

/** Of the shorter side: what evaluation looks at in large photographs. */
const CENTER = 0.875;
/** Pillow's fixed-point weights: 32 bits less 8 for the pixel and 2 to spare. */
const ONE = 2 ** 22;

export interface Picture {
  name: string;
  width: number;
  height: number;
  /** Red, green, blue and opacity of every pixel, row by row. */
  rgba: Uint8ClampedArray;
}

/** Pixels 0–255, `(height, width, channels)` row by row. */
export interface Pixels {
  width: number;
  height: number;
  channels: number;
  values: Uint8Array;
}

/**
 * Decodes an image file.
 *
 * @throws Refusal for a file that the browser cannot decode.
 */
export async function decode(file: Blob, name: string): Promise<Picture> {
  let bitmap: ImageBitmap;
  try {
    // Neither colour profiles nor opacity change a pixel: training and Pillow ignore both.
    bitmap = await createImageBitmap(file, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  } catch (error) {
    const received = `${name}, ${file.size} bytes of type “${file.type || "unknown"}” (${message(error)})`;
    throw new Refusal(`Expected an image that this browser can decode, such as PNG or JPEG. Received: ${received}`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {willReadFrequently: true})!;
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const {width, height, data} = context.getImageData(0, 0, canvas.width, canvas.height);
  return {name, width, height, rgba: data};
}

/** The central part of a picture in a model's size; a picture of that very size stays as it is. */
export function prepare(picture: Picture, height: number, width: number, channels: number): Pixels {
  const source = {width: picture.width, height: picture.height, channels, values: withChannels(picture.rgba, channels)};
  if (picture.width === width && picture.height === height) return source;
  const side = Math.max(1, Math.floor(Math.min(picture.width, picture.height) * CENTER));
  const left = Math.floor((picture.width - side) / 2);
  const top = Math.floor((picture.height - side) / 2);
  return resizeColumns(resizeRows(source, left, side, width), top, side, height);
}

/** Shows pixels on a canvas of their own size. */
export function show(pixels: Pixels, canvas: HTMLCanvasElement): void {
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  const image = new ImageData(pixels.width, pixels.height);
  for (let pixel = 0; pixel < pixels.width * pixels.height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * pixel + channel] = pixels.values[pixel * pixels.channels + (channel % pixels.channels)];
    }
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}

/** Grey (ITU-R 601-2, in Pillow's integers) or RGB. */
function withChannels(rgba: Uint8ClampedArray, channels: number): Uint8Array {
  const values = new Uint8Array((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 1) {
      values[to++] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
    } else {
      values[to++] = red;
      values[to++] = green;
      values[to++] = blue;
    }
  }
  return values;
}

interface Weights {
  first: number;
  weights: number[];
}

/** For every new pixel, the old ones it is a mean of: a triangle around its centre, as wide as shrinking asks for. */
function triangle(oldSize: number, start: number, length: number, newSize: number): Weights[] {
  const scale = length / newSize;
  const support = Math.max(scale, 1);
  return Array.from({length: newSize}, (_, index) => {
    const center = start + (index + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - support + 0.5));
    const end = Math.min(oldSize, Math.floor(center + support + 0.5));
    const raw = Array.from({length: end - first}, (_, tap) => {
      return Math.max(0, 1 - Math.abs((tap + first - center + 0.5) / support));
    });
    const sum = raw.reduce((total, weight) => total + weight, 0);
    return {first, weights: raw.map((weight) => Math.floor(0.5 + (weight / sum) * ONE))};
  });
}

function resizeRows(source: Pixels, start: number, length: number, width: number): Pixels {
  const {height, channels} = source;
  if (source.width === width && start === 0 && length === width) return source;
  const values = new Uint8Array(width * height * channels);
  triangle(source.width, start, length, width).forEach(({first, weights}, column) => {
    for (let row = 0; row < height; row++) {
      for (let channel = 0; channel < channels; channel++) {
        const from = (row * source.width + first) * channels + channel;
        values[(row * width + column) * channels + channel] = mean(source.values, from, channels, weights);
      }
    }
  });
  return {width, height, channels, values};
}

function resizeColumns(source: Pixels, start: number, length: number, height: number): Pixels {
  const {width, channels} = source;
  if (source.height === height && start === 0 && length === height) return source;
  const step = width * channels;
  const values = new Uint8Array(height * step);
  triangle(source.height, start, length, height).forEach(({first, weights}, row) => {
    for (let column = 0; column < step; column++) {
      values[row * step + column] = mean(source.values, first * step + column, step, weights);
    }
  });
  return {width, height, channels, values};
}

function mean(values: Uint8Array, from: number, step: number, weights: number[]): number {
  let sum = ONE / 2;
  for (let tap = 0; tap < weights.length; tap++) sum += values[from + tap * step] * weights[tap];
  return Math.min(255, Math.floor(sum / ONE));
}
