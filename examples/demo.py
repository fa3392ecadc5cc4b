"""A page in the browser: drop an image or draw a digit, and see its neighbours in Hamming space.

    python examples/demo.py                     # scanned digits; trains a small network first
    python examples/demo.py --images photos     # your images, folders within folders too
    python examples/demo.py --images photos --model out/model --model hf-hub:user/repo

``--model`` is a folder of ``hybridhash.hub.save_pretrained``, a repository of the Hub, or the name of a timm
model whose features are then hashed without labels (ITQ) to each length of ``--bits``; it can be repeated.
What a model gives for your images is kept in ``--keep``, so that the next start reads only new ones.
Needs ``pip install hybridhash[demo]``. The page is served to this machine only; nothing is sent elsewhere.
"""

import argparse
import base64
import hashlib
import html
import io
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported, as is the next
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageOps, ImageStat
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

import hybridhash
from hybridhash import HashCodes, asymmetric_topk, encode, hamming_topk, unpack_codes
from hybridhash.data import IMAGE_ENDINGS, read_image
from hybridhash.encoding import model_transform
from hybridhash.models import fit_hash_head

BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what read_image raises
NUM_QUERIES = 300  # digits that are not in the database
CELL = 12  # pixels of a bit in the picture of a code
# By whether the bit differs from the query's, and by the bit: RGBA.
BIT_COLOURS = np.array(
    [[[203, 213, 225, 255], [30, 58, 95, 255]], [[252, 165, 165, 255], [220, 38, 38, 255]]]
)
CSS = """
#hits, #examples, .grid-wrap {height: auto !important; min-height: 0 !important; max-height: none !important}
#hits .grid-container {grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)) !important}
#examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(54px, 1fr)) !important}
#hits .thumbnail-lg {height: auto; aspect-ratio: auto; display: flex; flex-direction: column}
#hits .thumbnail-lg img {height: auto; aspect-ratio: 1}
#hits .caption-label {position: static; max-width: 100%; width: 100%; border: 0; text-align: center}
#hits .caption-label {white-space: normal; overflow-wrap: anywhere; text-overflow: clip}
#bits table {width: 100%; margin: 0; border: 0; border-collapse: collapse; table-layout: fixed}
#bits td {padding: 2px 6px 2px 0; border: 0; white-space: nowrap}
#bits tr {border: 0} #bits td:nth-child(1) {width: 40px} #bits td:nth-child(2) {width: 62px}
#bits img {margin: 0; display: block}
#bits .thumb {width: 32px; height: 32px; object-fit: contain}
#bits .code {width: 100%; height: 18px; background: white}
#problem p {color: #dc2626; font-weight: 600}
"""


@dataclass(frozen=True)
class Pictures:
    """The images that are searched, in memory or as paths, with their captions, and example queries.

    ``notes`` are sentences about the files that were left out.
    """

    sources: list[Image.Image | Path]
    captions: list[str]
    queries: list[Image.Image]
    notes: tuple[str, ...] = ()

    def read(self, row):
        source = self.sources[row]
        return source if isinstance(source, Image.Image) else read_image(source)

    def stamp(self, row):
        """Return a name of the image that changes when its file does."""
        source = self.sources[row]
        if isinstance(source, Image.Image):
            return str(row)
        status = source.stat()
        return f"{source.absolute()}:{status.st_size}:{status.st_mtime_ns}"


@dataclass(frozen=True)
class Space:
    """A model, the transform from a PIL image to its input, and the codes of all pictures."""

    model: nn.Module
    transform: Callable[[Image.Image], torch.Tensor]
    codes: HashCodes


def find_images(folder):
    """Return the images below a folder, unread; files of other kinds are named in the notes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    paths, others = [], defaultdict(list)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            if path.suffix[1:].lower() in IMAGE_ENDINGS:
                paths.append(path)
            else:
                others[path.suffix.lower() or "no ending"].append(str(name))
    kinds = [f"{len(names):,} {ending} ({names[0]})" for ending, names in sorted(others.items())]
    note = f"Files of other kinds were left out: {', '.join(kinds)}; save photos among them as JPEG first."
    if not paths:
        raise ValueError(
            f"no image in {folder} ({', '.join(sorted(IMAGE_ENDINGS))}). {note if kinds else ''}"
        )
    return Pictures(paths, [str(path.relative_to(folder)) for path in paths], [], (note,) if kinds else ())


def without(pictures, broken):
    """Return the pictures without those that could not be read, given as errors by row."""
    rows = [row for row in range(len(pictures.sources)) if row not in broken]
    names = [f"{pictures.captions[row]} ({error})" for row, error in broken.items()]
    more = "; ..." if len(names) > 5 else ""
    note = f"{len(names):,} could not be read: {'; '.join(names[:5])}{more}."
    if not rows:
        raise ValueError(f"no image is left. {note}")
    return replace(
        pictures,
        sources=[pictures.sources[row] for row in rows],
        captions=[pictures.captions[row] for row in rows],
        notes=(*pictures.notes, note) if broken else pictures.notes,
    )


def read_digits():
    """Return scikit-learn's digits as dark ink on white paper, all but the last 300, and their labels."""
    digits = load_digits()
    grey = np.pad(np.rint(255 - digits.images * (255 / 16)), ((0, 0), (1, 1), (1, 1)), constant_values=255)
    images = [
        Image.fromarray(image.astype(np.uint8)).resize((100, 100), Image.Resampling.BICUBIC) for image in grey
    ]
    images = [image.convert("RGB") for image in images]
    queries = [images[-NUM_QUERIES:][int(np.argmax(digits.target[-NUM_QUERIES:] == i))] for i in range(10)]
    captions = [f"digit {label}" for label in digits.target[:-NUM_QUERIES]]
    return Pictures(images[:-NUM_QUERIES], captions, queries), torch.as_tensor(digits.target[:-NUM_QUERIES])


def digit_tensor(picture):
    """Return a picture of a digit as the network's input: cropped to its ink, (1, 32, 32) in [-1, 1]."""
    ink = picture.convert("L")
    if ImageStat.Stat(ink).median[0] >= 128:
        ink = ImageOps.invert(ink)
    ink = ink.crop(ink.point(lambda value: 255 * (value > 80)).getbbox())
    ink = ImageOps.pad(ink, (8, 8), Image.Resampling.BOX)
    values = torch.from_numpy(np.array(ink, dtype=np.float32))[None, None]
    return F.interpolate(values / 127.5 - 1, size=(32, 32), mode="bilinear")[0]


def digit_network(pictures, labels, epochs):
    """Train a small network as ``examples/quickstart.py`` does, and return it without its hash layer."""
    from quickstart import train

    torch.manual_seed(0)
    model = timm.create_model(
        "hybridhash_64",
        img_size=32,
        in_chans=1,
        embed_dims=(24, 48, 96),
        num_heads=(1, 2, 4),
        depths=(1, 1, 1),
        drop_path_rate=0.0,
    )
    images = torch.stack([digit_tensor(picture) for picture in pictures.sources])
    train(model, TensorDataset(images, labels, torch.arange(len(labels))), epochs, "cpu")
    model.reset_classifier(0)
    return model


def load_spaces(pictures, name, bits, pretrained, keep=None):
    """Return the pictures that can be read, and the spaces of a hash model or of a timm model's features.

    A hash model has one space; the features of a timm model have one for each length of ``bits``.
    """
    if Path(name).exists() or ":" in name or "/" in name:
        model = hybridhash.load(name)
        transform = model_transform(model)
        pictures, values = outputs(pictures, model, transform, name, keep)
        codes = HashCodes.from_codes(values)
        return pictures, {f"{name}, {model.bits} bits": Space(model, transform, codes)}
    try:
        torch.manual_seed(0)  # random weights are the same at the next start
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except OSError as error:
        raise OSError(
            f"no weights of {name}: {error} (--no-pretrained and --model FOLDER need none)"
        ) from error
    return hash_features(pictures, backbone, model_transform(backbone), name, bits, keep)


def hash_features(pictures, backbone, transform, name, bits, keep=None):
    """Hash a network's features to each length, by ITQ if there are more images than bits, else by LSH."""
    pictures, features = outputs(pictures, backbone, transform, name, keep)
    spaces = {}
    for length in bits:
        method = "itq" if len(features) > length else "lsh"
        head = fit_hash_head(features, method, length, torch.Generator().manual_seed(0)).eval()
        codes = encode(head, features.split(1024), progress=False)
        spaces[f"{name}, {length} bits"] = Space(nn.Sequential(backbone, head), transform, codes)
    return pictures, spaces


def outputs(pictures, network, transform, name, keep=None):
    """Return the pictures that can be read, and what a network gives for them, float (N, D).

    Values of files that have not changed are taken from a file in the folder ``keep``. New ones are written
    there, also when the pass is interrupted.
    """
    network.eval()
    file = keep / f"{digest(network, transform)}.npz" if keep else None
    kept = read_kept(file)
    stamps = [pictures.stamp(row) for row in range(len(pictures.sources))]
    missing = [row for row, stamp in enumerate(stamps) if stamp not in kept]
    broken = {}
    bar = tqdm(total=len(missing), desc=name, unit="image", disable=not missing)
    try:
        for start in range(0, len(missing), 64):
            inputs = {}
            for row in missing[start : start + 64]:
                try:
                    inputs[stamps[row]] = transform(pictures.read(row))
                except BAD_IMAGE as error:
                    broken[row] = error
                bar.update()
            if inputs:
                with torch.no_grad():
                    values = network(torch.stack(list(inputs.values()))).float()
                kept |= zip(inputs, values, strict=True)
    finally:
        bar.close()
        if file and missing:
            write_kept(file, kept)
    pictures = without(pictures, broken)
    values = [kept[stamp] for row, stamp in enumerate(stamps) if row not in broken]
    return pictures, torch.stack(values)


def digest(network, transform):
    """Return a name for what a network gives: it changes with weights, transform and version."""
    content = hashlib.sha256(f"{hybridhash.__version__} {transform}".encode())
    for name, tensor in network.state_dict().items():
        content.update(name.encode())
        content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()[:16]


def read_kept(file):
    """Return what :func:`write_kept` wrote, or nothing if there is no such file or it is damaged."""
    if file is None or not file.exists():
        return {}
    try:
        with np.load(file) as content:
            return dict(zip(content["stamps"].tolist(), torch.from_numpy(content["values"]), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{file} is damaged and is made anew: {error}")
        return {}


def write_kept(file, kept):
    """Write the values of a network by the stamps of their files, in one step."""
    if kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, stamps=np.array(list(kept)), values=torch.stack(list(kept.values())).numpy())
        temporary.replace(file)


def rank(space, picture, by_values=False):
    """Rank all images by their distance to a picture, or by their scores with the values before its signs.

    Returns:
        The code of the picture; and the Hamming distances and the rows of all images, nearest first.
    """
    inputs = space.transform(picture)[None]
    query = encode(space.model, [inputs], progress=False)
    distances, rows = hamming_topk(query, space.codes, top_k=None)
    if by_values:
        with torch.no_grad():
            values = space.model(inputs).float()
        by_row = torch.empty_like(distances).scatter_(1, rows, distances)
        _, rows = asymmetric_topk(values, space.codes, top_k=None)
        distances = by_row.gather(1, rows)
    return query, distances[0], rows[0]


def code_pixels(code, query):
    """Draw bits (B,) as RGBA (CELL, B * CELL, 4): dark is 1, light is 0, red differs from the query."""
    pixels = np.zeros((CELL, len(code), CELL, 4), dtype=np.uint8)
    pixels[:, :, 1:-1] = BIT_COLOURS[(code != query).astype(int), code.astype(int)][:, None]
    return pixels.reshape(CELL, -1, 4)


def thumbnail(picture, size):
    picture = picture.copy()
    picture.thumbnail((size, size))
    return picture


def inline(picture, name, alt):
    """Return a picture as an HTML element that contains it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{name}" alt="{html.escape(alt)}" src="data:image/png;base64,{content}">'


def histogram(distances, bits, radius):
    """Plot the number of images at each distance, those within the radius in red."""
    counts = torch.bincount(distances.long(), minlength=bits + 1).tolist()
    figure = Figure(figsize=(6.4, 2.6), layout="constrained", facecolor="none")  # on a light or dark page
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.bar(
        range(bits + 1), counts, 0.9, color=["#dc2626" if d <= radius else "#94a3b8" for d in range(bits + 1)]
    )
    grey = "#7c8798"  # can be read on white and on black
    axes.set_xlabel("Hamming distance (red: within the radius)", fontsize=12, color=grey)
    axes.set_ylabel("images", fontsize=12, color=grey)
    axes.tick_params(labelsize=12, colors=grey)
    axes.spines[["left", "bottom"]].set_color(grey)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def bits_table(lines):
    """Return codes as an HTML table of pictures, titles and bits, one below the other, the query first."""
    cells = ""
    for picture, title, bits in lines:
        code = Image.fromarray(code_pixels(bits, lines[0][2]))
        cells += f"<tr><td>{inline(thumbnail(picture, 64), 'thumb', title)}</td><td>{title}</td>"
        cells += f"<td>{inline(code, 'code', title)}</td></tr>"
    return f"<table>{cells}</table>"


def show(pictures, spaces, picture, name, top_k, radius, by_values=False):
    """Return the outputs of the page for a query: picture, text, gallery, codes, histogram."""
    if picture is None:
        return None, "Drop an image, draw one, or choose one of the examples.", [], "", None
    codes = spaces[name].codes
    query, distances, rows = rank(spaces[name], picture, by_values)
    text = f"**{int((distances <= radius).sum()):,}** of {len(rows):,} images lie within radius {radius:g}; "
    low, high = distances.min(), distances.max()
    text += f"the nearest at distance {low}, the farthest at {high} of {codes.bits} bits."
    lines, hits = [(picture, "query", unpack_codes(query.packed, codes.bits)[0].numpy() > 0)], []
    for row, distance in zip(rows[:top_k].tolist(), distances[:top_k].tolist(), strict=True):
        hit = thumbnail(pictures.read(row), 320)
        hits.append((hit, f"d = {distance} · {pictures.captions[row]}"))
        lines.append((hit, f"d = {distance}", unpack_codes(codes.packed[[row]], codes.bits)[0].numpy() > 0))
    return thumbnail(picture, 320), text, hits, bits_table(lines), histogram(distances, codes.bits, radius)


def open_file(path):
    """Return the query in a file, and a message if there is none."""
    try:
        return read_image(path), ""
    except BAD_IMAGE as error:
        reason = str(error).replace(str(path), Path(path).name)  # the server's folder says nothing
        return None, f"{Path(path).name} is no image that can be read: {reason}"


def open_drawing(drawing):
    """Return the query of the drawing board, on white paper, and a message if there is none."""
    ink = drawing and drawing["composite"]
    if ink is None or ink.convert("RGBA").getchannel("A").getbbox() is None:
        return None, "The paper is empty: draw something first."
    ink = ink.convert("RGBA")
    paper = Image.new("RGBA", ink.size, "white")
    return Image.alpha_composite(paper, ink).convert("RGB"), ""


def about(pictures):
    count = f"{len(pictures.sources):,} images, searched by the Hamming distance of their binary codes."
    return " ".join((count, *pictures.notes))


def build_page(pictures, spaces):
    most = max(2, min(50, len(pictures.sources)))
    longest = max(space.codes.bits for space in spaces.values())
    in_memory = isinstance(pictures.sources[0], Image.Image)  # digits, which one can draw
    grid = {"object_fit": "contain", "buttons": [], "format": "png", "show_label": False, "height": "auto"}
    with gr.Blocks(title="hybridhash", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        query = gr.State(pictures.queries[0])
        gr.Markdown("# Image retrieval by binary codes")
        gr.HTML(html.escape(about(pictures)), elem_id="about", apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Tab("Image"):
                    file = gr.File(label="Drop an image", height=120)
                    gr.Markdown("or choose one:")
                    examples = gr.Gallery(pictures.queries, allow_preview=False, elem_id="examples", **grid)
                with gr.Tab("Drawing", visible=in_memory):
                    pen = gr.Brush(default_size=20, colors=["#000000"], color_mode="fixed")
                    board = gr.Sketchpad(
                        type="pil", label="Draw", canvas_size=(280, 280), fixed_canvas=True, layers=False,
                        brush=pen, transforms=(), buttons=[], height=360,
                    )  # fmt: skip
                    search = gr.Button("Search this drawing", variant="primary")
                problem = gr.Markdown(elem_id="problem")
                shown = gr.Image(label="Query", height=170, interactive=False, format="png", buttons=[])
                space = gr.Radio(list(spaces), value=list(spaces)[-1], label="Model and code length")
                by_values = gr.Checkbox(label="Rank by the values of the query, not only their signs")
                top_k = gr.Slider(1, most, min(10, most), step=1, label="Nearest images", elem_id="k")
                radius = gr.Slider(0, longest, 2, step=1, label="Radius", elem_id="radius")
            with gr.Column(scale=3, min_width=300):
                text = gr.Markdown(elem_id="text")
                hits = gr.Gallery(elem_id="hits", **grid)
                gr.Markdown("**Codes**, bit under bit: dark is 1, light is 0, red differs from the query.")
                codes = gr.HTML(elem_id="bits")
                gr.Markdown("**Distances** of all images to the query.")
                plot = gr.Plot(show_label=False, format="png")

        def choose(event: gr.SelectData):
            return pictures.queries[event.index], ""

        def update(*values):
            return show(pictures, spaces, *values)

        results = {
            "fn": update,
            "inputs": [query, space, top_k, radius, by_values],
            "outputs": [shown, text, hits, codes, plot],
        }
        opened = [
            file.upload(lambda path: (*open_file(path), None), file, [query, problem, file]),
            search.click(open_drawing, board, [query, problem]),
            examples.select(choose, None, [query, problem]),
        ]
        for event in opened:
            event.then(**results)
        live = [page.load, space.change, top_k.change, radius.change, by_values.change]
        gr.on(live, **results, trigger_mode="always_last", show_progress="hidden")
    return page


def load_everything(args):
    """Return the pictures and the spaces that the arguments ask for."""
    if not args.images and not args.model:
        pictures, labels = read_digits()
        network = digit_network(pictures, labels, args.epochs)
        return hash_features(pictures, network, digit_tensor, "digits", args.bits)
    pictures = find_images(args.images) if args.images else read_digits()[0]
    keep = args.keep if args.images else None
    spaces = {}
    for name in args.model or ["resnet18"]:
        readable, found = load_spaces(pictures, name, args.bits, args.pretrained, keep)
        if spaces and len(readable.sources) < len(pictures.sources):
            raise ValueError(f"images have changed while they were read. {readable.notes[-1]} Start again.")
        pictures = readable
        spaces |= found
    if args.images:
        step = -(-len(pictures.sources) // 8)
        queries = [pictures.read(row) for row in range(0, len(pictures.sources), step)]
        pictures = replace(pictures, queries=queries)
    return pictures, spaces


def arguments():
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=Path, help="folder to search (scanned digits)")
    add("--model", action="append", help="folder, Hub id or timm model, repeatable (of a folder: resnet18)")
    add("--bits", type=int, nargs="+", default=[16, 32, 64], help="code lengths (16 32 64)")
    add("--pretrained", action=argparse.BooleanOptionalAction, default=True, help="weights of timm models")
    add("--epochs", type=int, default=5, help="of the network of digits (5)")
    add("--keep", type=Path, default=Path("out/demo"), help="folder of what was computed (out/demo)")
    add("--host", default="127.0.0.1", help="address to serve on (127.0.0.1: for this machine only)")
    add("--port", type=int, default=7860, help="(7860)")
    return parser


def main():
    parser = arguments()
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = 300_000_000  # Pillow refuses twice as many, 600 megapixels
    try:
        pictures, spaces = load_everything(args)
        print(about(pictures))
        page = build_page(pictures, spaces)
        print(f"open http://{args.host}:{args.port}; Ctrl-C ends it")
        page.launch(server_name=args.host, server_port=args.port, quiet=True, css=CSS, footer_links=[])
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
