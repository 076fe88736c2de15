/** A square to draw on with finger, pen or mouse: white on black, as the digits are. */

import type {Picture} from "./image";

/** Of the square's width; about the pen of the digits. */
const PEN = 0.19;

/**
 * Makes a canvas a square to draw on.
 *
 * @param onPicture is given the picture after each stroke.
 * @returns a function that clears it.
 */
export function makeDrawable(canvas: HTMLCanvasElement, onPicture: (picture: Picture) => void): () => void {
  const context = canvas.getContext("2d", {willReadFrequently: true})!;
  const clear = () => {
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
  };
  const place = (event: PointerEvent): [number, number] => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [(x * canvas.width) / box.width, (y * canvas.height) / box.height];
  };
  let pen: [number, number] | null = null;
  const line = (event: PointerEvent) => {
    if (!pen) return;
    const next = place(event);
    context.beginPath();
    context.moveTo(...pen);
    context.lineTo(...next);
    context.stroke();
    pen = next;
  };
  clear();
  context.strokeStyle = "white";
  context.lineCap = "round";
  context.lineWidth = PEN * canvas.width;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pen = place(event);
    line(event); // a dot
  });
  canvas.addEventListener("pointermove", line);
  canvas.addEventListener("pointercancel", () => (pen = null));
  canvas.addEventListener("pointerup", (event) => {
    if (!pen) return;
    line(event);
    pen = null;
    const {width, height, data} = context.getImageData(0, 0, canvas.width, canvas.height);
    onPicture({name: "drawing", width, height, rgba: data});
  });
  return clear;
}
