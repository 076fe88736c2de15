"""The page of `examples/browser/`, built and driven in headless Chromium, against Keras and Pillow."""

import base64
import functools
import http.server
import io
import pathlib
import re
import shutil
import subprocess
import threading

import keras
import numpy as np
import pytest

import elrt_keras as elrt

playwright = pytest.importorskip("playwright.sync_api")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("ai_edge_litert")

PROGRAMS = {name: shutil.which(name) for name in ("node", "npm", "chromium")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]
SOURCES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "browser"
MODELS = {"dense": {"format": "dense"}, "low_rank": {"max_macs": 0.4}}
IMAGES = 20
PHONE = {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tensorflow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def digits():
    from elrt_keras.launch import data

    return data.load("digits")


@pytest.fixture(scope="module")
def models(digits, tmp_path_factory):
    """Both models after some epochs: `{name: (Keras model, its .tflite file)}`."""
    from elrt_keras.launch.config import TrainConfig
    from elrt_keras.launch.training import run

    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, options in MODELS.items():
        run(
            TrainConfig(dataset="digits", epochs=5, batch_size=64, lr_schedule="one_cycle", **options),
            str(folder / name),
        )
        model = keras.models.load_model(folder / name / "model.keras", compile=False)
        path = folder / f"{name}.tflite"
        elrt.export.to_litert(model, path, class_names=list(digits.class_names))
        found[name] = (model, path)
    return found


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    """Serves the built page with both models from a subfolder; yields the address. The page must not depend on it."""
    check_node()
    project = tmp_path_factory.mktemp("browser") / "project"
    # Build in a copy, so that node_modules and the build do not stay in the checkout.
    shutil.copytree(SOURCES, project, ignore=shutil.ignore_patterns("node_modules", "dist", "public"))
    npm("ci", "--no-audit", "--no-fund", "--prefer-offline", cwd=project)
    npm("run", "build", cwd=project)
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(project / "dist", site / "some" / "where")
    (site / "some" / "where" / "models").mkdir()
    for name, (_, path) in models.items():
        shutil.copy(path, site / "some" / "where" / "models" / f"{name}.tflite")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/some/where/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAMS["chromium"])
        yield browser
        browser.close()


@pytest.fixture
def page(address, chromium):
    """Opens the page with both models loaded; checks its requests and its errors afterwards."""
    page = chromium.new_page()
    page.set_default_timeout(60_000)
    requests, failures = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda failure: failures.append(str(failure)))
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]")
    yield page
    assert requests and all(re.match(rf"{address}|blob:|data:", url) for url in requests), requests
    assert any(url.endswith(".wasm") for url in requests) and not failures, failures
    page.close()


class Files(http.server.SimpleHTTPRequestHandler):
    """A quiet file server that knows the type of WebAssembly files, which the system's table may lack."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *arguments):
        pass


def npm(*arguments, cwd):
    done = subprocess.run([PROGRAMS["npm"], *arguments], cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def check_node():
    """Skips the test if Node.js is older than package.json requires."""
    version = subprocess.run([PROGRAMS["node"], "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, re.match(r"v(\d+)\.(\d+)", version).groups())
    if (major, minor) < (20, 19) or (21, 0) <= (major, minor) < (22, 12):
        pytest.skip(f"needs Node.js 20.19, 22.12 or later, received {version.strip()}")


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def choose(page, selector, name, content, kind="application/octet-stream"):
    page.set_input_files(selector, {"name": name, "mimeType": kind, "buffer": content})


def results(page, picture):
    """Waits until both cards have classified the picture; returns `{card: (top class, its probability)}`."""
    found = {}
    for name in MODELS:
        row = page.locator(f'#{name} .results[data-picture="{picture}"] li').first
        found[name] = row.locator(".name").inner_text(), float(row.locator(".value").inner_text().removesuffix(" %"))
    return found


def load(page, card, name, content):
    """Loads another model into a card and waits until it was timed."""
    choose(page, f"#{card} .model", name, content)
    playwright.expect(page.locator(f"#{card} .file")).to_have_text(name)
    playwright.expect(page.locator(f"#{card} .latency")).to_have_text(re.compile(r"^[\d.]+ ms$"))


def predict(model, pixels):
    """Keras' probabilities of one grey picture 0–255."""
    return model.predict(pixels[None, ..., None].astype("float32"), verbose=0)[0]


def as_pillow_does(image, size):
    """Returns the pixels of `examples/classify.py` for a grey model, resized in one step and rows first."""
    image = image.convert("L")
    side = int(min(image.size) * 0.875)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    bilinear = Image.Resampling.BILINEAR
    at_once = image.resize((size, size), bilinear, box=(left, top, left + side, top + side))
    rows = image.resize((size, image.height), bilinear, box=(left, 0, left + side, image.height))
    rows_first = rows.resize((size, size), bilinear, box=(0, top, size, top + side))
    return np.asarray(at_once), np.asarray(rows_first)


def check_pixels(page, image):
    """Checks the page's pixels: equal to Pillow's with rows first, and close to Pillow's in one step."""
    shown = shown_pixels(page)
    at_once, rows_first = as_pillow_does(image, 8)
    assert np.array_equal(shown, rows_first)
    # Each order rounds twice, by at most half a level.
    assert np.abs(shown.astype(int) - at_once).max() <= 2
    return shown


def shown_pixels(page):
    """Returns the grey values of the model's input, which the page shows."""
    script = """canvas => {
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return [canvas.height, canvas.width, Array.from(data)];
    }"""
    height, width, data = page.locator("#preview canvas").evaluate(script)
    return np.array(data, "uint8").reshape(height, width, 4)[..., 0]


def drawing(page):
    """Returns the pixels of the drawing square."""
    address = page.locator("#drawing").evaluate("canvas => canvas.toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))


def test_top_classes_are_keras_on_20_images(page, digits, models):
    pictures = digits.test_images[:IMAGES, ..., 0]
    found = []
    for number, pixels in enumerate(pictures):
        choose(page, "#image", f"{number}.png", png(pixels), "image/png")
        found.append(results(page, f"{number}.png"))
    for name, (model, _) in models.items():
        scores = model.predict(pictures[..., None].astype("float32"), verbose=0)
        expected = scores.argmax(axis=-1)
        assert len(set(expected)) > 5, "the models tell digits apart"
        assert [int(row[name][0]) for row in found] == list(expected)
        # The page shows tenths of a percent.
        assert [row[name][1] for row in found] == pytest.approx(list(100 * scores.max(axis=-1)), abs=0.051)


def test_sizes_latencies_and_their_ratios(page, models):
    latencies, sizes = {}, {}
    for name, (_, path) in models.items():
        sizes[name] = path.stat().st_size
        card = page.locator(f"#{name}")
        assert card.locator(".file").inner_text() == f"{name}.tflite"
        assert card.locator(".size").inner_text() == f"{round(sizes[name] / 1000):,} kB"
        assert card.locator(".input").inner_text() == "8 × 8 × 1, float32"
        latencies[name] = float(card.locator(".latency").inner_text().removesuffix(" ms"))
        assert 0 < latencies[name] < 1000
    assert page.locator("#ratio_size").inner_text() == f"{100 * sizes['low_rank'] / sizes['dense']:.1f} %"
    speed = float(page.locator("#ratio_speed").inner_text().removesuffix("×"))
    # Latencies are shown with three digits.
    assert speed == pytest.approx(latencies["dense"] / latencies["low_rank"], rel=0.02)
    page.click("#again")
    playwright.expect(page.locator("#status")).to_contain_text("Median of 20 measurements")


def test_the_number_of_classes_shown(page, digits):
    choose(page, "#image", "first.png", png(digits.test_images[0, ..., 0]), "image/png")
    results(page, "first.png")
    for count in (3, 10):
        page.fill("#count", str(count))
        page.keyboard.press("Enter")
        for name in MODELS:
            rows = page.locator(f"#{name} .results li")
            playwright.expect(rows).to_have_count(count)
            parts = [float(text.removesuffix(" %")) for text in rows.locator(".value").all_inner_texts()]
            assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize("size", [(301, 203), (40, 90), (16, 9), (5, 4)], ids=str)
def test_a_dropped_picture_of_another_size(page, models, size):
    """Colours become grey and the central part is resized as Pillow does it."""
    random = np.random.default_rng(0)
    content = png(random.integers(0, 256, (*size, 3), dtype="uint8"))
    script = """bytes => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
      return transfer;
    }"""
    transfer = page.evaluate_handle(script, list(content))
    page.dispatch_event("#picture", "drop", {"dataTransfer": transfer})
    found = results(page, "dropped.png")
    expected = check_pixels(page, Image.open(io.BytesIO(content)))
    for name, (model, _) in models.items():
        assert int(found[name][0]) == predict(model, expected).argmax()


def test_a_drawing(page, models):
    page.set_viewport_size(PHONE)
    box = page.locator("#drawing").bounding_box()
    corners = [(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)]  # a seven
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=10)
    page.mouse.up()
    found = results(page, "drawing")
    assert page.locator("#drawing").bounding_box() == box, "nothing moves under the pen"
    expected = check_pixels(page, drawing(page))
    assert expected.max() > 200
    for name, (model, _) in models.items():
        assert int(found[name][0]) == predict(model, expected).argmax()
    page.click("#clear")
    assert np.asarray(drawing(page).convert("L")).max() == 0


@pytest.mark.parametrize(
    "options", [("float16", "float32"), ("dynamic_int8", "float32"), ("int8", "float32"), ("int8", "uint8")], ids=str
)
def test_quantised_models(page, digits, models, tmp_path, options):
    quantization, io_dtype = options
    model, _ = models["low_rank"]
    path = tmp_path / "quantised.tflite"
    elrt.export.to_litert(model, path, quantization, digits.train_images, io_dtype=io_dtype)
    load(page, "low_rank", path.name, path.read_bytes())
    assert page.locator("#low_rank .input").inner_text() == f"8 × 8 × 1, {io_dtype}"
    scores = model.predict(digits.test_images.astype("float32"), verbose=0)
    # Where Keras is sure, rounding to 8 bits changes no top class.
    sure = [int(index) for index in np.flatnonzero(scores.max(axis=-1) > 0.95)[:10]]
    assert len(sure) == 10
    for index in sure:
        choose(page, "#image", f"{index}.png", png(digits.test_images[index, ..., 0]), "image/png")
        top, probability = results(page, f"{index}.png")["low_rank"]
        assert int(top) == scores[index].argmax() and probability > 50


def test_names_range_and_logits_of_a_file(page, digits, models, tmp_path):
    """Loads a model for pixels 0–1 with logits and without class names; then names from a text file replace numbers."""
    model, _ = models["dense"]
    image = keras.Input((8, 8, 1))
    probabilities = model(keras.layers.Rescaling(255.0)(image))
    logits = keras.Model(image, keras.layers.Lambda(lambda x: keras.ops.log(x + 1e-30))(probabilities))
    path = tmp_path / "logits.tflite"
    elrt.export.to_litert(logits, path, input_range=(0.0, 1.0))
    load(page, "dense", path.name, path.read_bytes())
    pixels = digits.test_images[3, ..., 0]
    choose(page, "#image", "third.png", png(pixels), "image/png")
    expected = predict(model, pixels)
    top = int(expected.argmax())
    assert results(page, "third.png")["dense"] == (str(top), pytest.approx(100 * expected[top], abs=0.051))
    names = [f"digit {number}" for number in range(10)]
    choose(page, "#dense .names input", "two.txt", b"one\ntwo\n", "text/plain")
    message = "Expected 10 class names, one a line. Received: 2"
    playwright.expect(page.locator("#dense .error")).to_have_text(message)
    choose(page, "#dense .names input", "names.txt", "\n".join(names).encode(), "text/plain")
    playwright.expect(page.locator("#dense .results .name").first).to_have_text(names[top])
    playwright.expect(page.locator("#dense .error")).to_be_empty()


def bad_models(models, digits, folder):
    """`{name: (content, part of the message)}`."""
    model, path = models["low_rank"]
    content = path.read_bytes()
    integers, flat = folder / "integers.tflite", folder / "flat.tflite"
    elrt.export.to_litert(model, integers, "int8", digits.train_images, io_dtype="int8")
    dense = keras.Sequential([keras.Input((16,)), keras.layers.Dense(10, activation="softmax")])
    elrt.export.to_litert(dense, flat)
    return {
        "text.tflite": (b"This is no model.", "17 bytes that begin with “This is ”"),
        "empty.tflite": (b"", "an empty file"),
        "half.tflite": (content[: len(content) // 2], "Received: half.tflite"),
        "head.tflite": (content[:100], "Received: head.tflite"),
        "integers.tflite": (integers.read_bytes(), "Expected inputs of float32 or uint8, which LiteRT.js has"),
        "flat.tflite": (flat.read_bytes(), "Received: flat.tflite: an input of shape (1, 16)"),
    }


def test_wrong_files_say_what_was_expected_and_change_nothing(page, digits, models, tmp_path):
    error = page.locator("#dense .error")
    for name, (content, part) in bad_models(models, digits, tmp_path).items():
        choose(page, "#dense .model", name, content)
        playwright.expect(error).to_contain_text(part)
        playwright.expect(error).to_contain_text("Expected ")
        playwright.expect(error).to_contain_text(f"Received: {name}")
        assert page.locator("#dense .file").inner_text() == "dense.tflite"
    choose(page, "#image", "text.png", b"This is no image.", "image/png")
    message = "Expected an image that this browser can decode, such as PNG or JPEG. Received: text.png, 17 bytes"
    playwright.expect(page.locator("#picture .error")).to_contain_text(message)
    pixels = digits.test_images[0, ..., 0]
    choose(page, "#image", "good.png", png(pixels), "image/png")
    for name, (top, _) in results(page, "good.png").items():
        assert int(top) == predict(models[name][0], pixels).argmax()
    playwright.expect(page.locator("#picture .error")).to_be_empty()


def test_a_phone_shows_it_without_scrolling_sideways(address, chromium):
    page = chromium.new_page(viewport=PHONE)
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_without_models_beside_it(address, chromium, digits, models):
    """Cards wait for files; a picture given before a model is classified once the model is loaded."""
    page = chromium.new_page()
    page.route("**/models/*", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]")
    assert page.locator("#dense .file").inner_text() == "none yet" and page.locator("#comparison").is_hidden()
    pixels = digits.test_images[0, ..., 0]
    choose(page, "#image", "early.png", png(pixels), "image/png")
    for name, (_, path) in models.items():
        load(page, name, path.name, path.read_bytes())
    for name, (top, _) in results(page, "early.png").items():
        assert int(top) == predict(models[name][0], pixels).argmax()
    assert page.locator("#comparison").is_visible()
    page.close()
