/** One model's card: its file, its facts, the most likely classes, and what went wrong. */

import {message} from "./errors";
import {Classifier} from "./model";
import {lines} from "./tflite";

/** In units that file managers use: 1 kB = 1000 bytes. */
export function kilobytes(bytes: number): string {
  return `${Math.round(bytes / 1000).toLocaleString("en")} kB`;
}

export function percent(part: number): string {
  return `${(100 * part).toFixed(1)} %`;
}

export class Card {
  model: Classifier | null = null;
  /** Milliseconds; `null` before it was measured. */
  latency: number | null = null;
  private probabilities: number[] = [];
  private shown = 0;

  constructor(
    readonly element: HTMLElement,
    title: string,
  ) {
    const template = document.querySelector<HTMLTemplateElement>("#card")!;
    element.append(template.content.cloneNode(true));
    const heading = this.part("h2");
    heading.textContent = title;
    heading.id = `${element.id}-title`;
    element.setAttribute("aria-labelledby", heading.id);
  }

  part<T extends HTMLElement = HTMLElement>(selector: string): T {
    return this.element.querySelector<T>(selector)!;
  }

  /** Takes over another model; the one before it stays if this one cannot be loaded. */
  async load(content: Uint8Array, name: string): Promise<void> {
    await this.reporting(async () => {
      const model = await Classifier.load(content, name);
      this.model?.delete();
      this.model = model;
      this.showLatency(null);
      this.showResults([], "", 0);
      const {input, classNames} = model.info;
      this.part(".file").textContent = name;
      this.part(".size").textContent = kilobytes(model.bytes);
      this.part(".input").textContent = `${input.shape.slice(1).join(" × ")}, ${input.dtype}`;
      this.part(".names").hidden = classNames !== null;
    });
  }

  async takeClassNames(file: File): Promise<void> {
    await this.reporting(async () => {
      this.model!.classNames = lines(await file.text());
      this.showResults(this.probabilities, this.part(".results").dataset.picture ?? "", this.shown);
    });
  }

  showLatency(milliseconds: number | null): void {
    this.latency = milliseconds;
    this.part(".latency").textContent = milliseconds === null ? "–" : `${milliseconds.toPrecision(3)} ms`;
  }

  /** Lists the `count` most likely classes with bars. */
  showResults(probabilities: number[], picture: string, count: number): void {
    this.probabilities = probabilities;
    this.shown = count;
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, count);
    const results = this.part(".results");
    results.replaceChildren(...order.map((index) => this.row(this.model!.className(index), probabilities[index])));
    results.dataset.picture = picture;
    const top = order.length ? `${this.model!.className(order[0])}, ${percent(probabilities[order[0]])}` : "";
    this.part(".spoken").textContent = top;
  }

  /** The number of the most likely class; -1 before there is one. */
  get topClass(): number {
    return this.probabilities.indexOf(Math.max(...this.probabilities));
  }

  /** Shows what a step says that fails, and clears what an earlier one said. */
  async reporting(step: () => Promise<void>): Promise<void> {
    const error = this.part(".error");
    error.textContent = "";
    try {
      await step();
    } catch (reason) {
      error.textContent = message(reason);
    }
  }

  private row(name: string, probability: number): HTMLElement {
    const row = document.createElement("li");
    const parts = ["name", "bar", "value"].map((part) => {
      const element = document.createElement("span");
      element.className = part;
      return element;
    });
    parts[0].textContent = name;
    parts[1].style.setProperty("--part", String(probability));
    parts[2].textContent = percent(probability);
    row.append(...parts);
    return row;
  }
}
