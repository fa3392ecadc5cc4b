"""The demo page: what it computes, and what a user sees in a browser (skipped where there is none)."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests import ROOT

pytest.importorskip("gradio", reason="the demo page needs hybridhash[demo]")

from hybridhash import HashCodes, asymmetric_topk, encode, hamming_distance, hamming_topk, unpack_codes
from hybridhash.hub import save_pretrained
from hybridhash.models import create_hash_model

SCRIPT = ROOT / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(demo):
    """150 digits, hashed by a network as it begins, in 16 and 24 bits."""
    everything, _ = demo.read_digits()
    pictures = demo.Pictures(everything.sources[:150], everything.captions[:150], everything.queries)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    return demo.hash_features(pictures, network, demo.digit_tensor, "digits", [16, 24])


@pytest.fixture
def folder(tmp_path):
    """Three images at two levels, two broken ones, photos of other kinds, a text, a hidden file."""
    (tmp_path / "photos" / "deep" / "deeper").mkdir(parents=True)
    root = tmp_path / "photos"
    for name, colour in (("a.png", "red"), ("deep/b.JPG", "green"), ("deep/deeper/c.bmp", "blue")):
        Image.new("RGB", (40, 30), colour).save(root / name)
    (root / "deep" / "broken.jpg").write_bytes((root / "deep" / "b.JPG").read_bytes()[:200])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("no image")
    for name in ("c.HEIC", "deep/d.heic", ".hidden.heic"):
        (root / name).touch()
    return root


class Mean(torch.nn.Module):
    """The mean colour; counts the images that it sees."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.mean((2, 3)) * self.scale


def tensor_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_a_folder_is_read_at_every_level_and_what_is_left_out_is_named(demo, folder, capsys):
    pictures = demo.find_images(folder)
    pictures, values = demo.outputs(pictures, Mean(), tensor_of, "mean")
    assert pictures.captions == ["a.png", "deep/b.JPG", "deep/deeper/c.bmp"]
    assert pictures.read(2).getpixel((0, 0)) == (0, 0, 255)
    torch.testing.assert_close(values[[0, 2]], torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    text = demo.about(pictures)
    assert text.startswith("3 images")
    assert "left out: 2 .heic (c.HEIC), 1 .txt (notes.txt); save photos among them as JPEG first" in text
    assert "2 could not be read: deep/broken.jpg (" in text
    assert "; empty.png (" in text
    assert "hidden" not in text
    assert "mean: 100%" in capsys.readouterr().err  # the progress bar


def test_what_a_network_gives_is_kept_between_starts(demo, folder, tmp_path, capsys):
    network, keep = Mean(), tmp_path / "keep"

    def start():
        network.seen = 0
        pictures, values = demo.outputs(demo.find_images(folder), network, tensor_of, "mean", keep)
        expected = torch.stack([tensor_of(pictures.read(row)).mean((1, 2)) for row in range(len(values))])
        torch.testing.assert_close(values, expected)
        return network.seen

    assert [start(), start()] == [3, 0]
    Image.new("RGB", (40, 30), "white").save(folder / "new.png")
    assert [start(), start()] == [1, 0]
    Image.new("RGB", (40, 30), "black").save(folder / "a.png")
    assert start() == 1
    (folder / "deep" / "b.JPG").unlink()
    assert start() == 0
    (file,) = keep.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert start() == 3  # all that are left
    assert "is damaged and is made anew" in capsys.readouterr().out
    assert start() == 0
    other = Mean()
    other.scale.fill_(2.0)
    _, values = demo.outputs(demo.find_images(folder), other, tensor_of, "mean", keep)
    assert (other.seen, values.max().item()) == (3, 2.0)


def test_an_interrupted_pass_goes_on_where_it_stopped(demo, tmp_path, monkeypatch):
    for number in range(70):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    network = Mean()

    def interrupted(image):
        if image.getpixel((0, 0))[0] == 66:
            raise KeyboardInterrupt
        return tensor_of(image)

    monkeypatch.setattr(demo, "digest", lambda *_: "one")  # two transforms, as if they were one
    pictures = demo.find_images(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        demo.outputs(pictures, network, interrupted, "mean", tmp_path / "keep")
    _, values = demo.outputs(pictures, network, tensor_of, "mean", tmp_path / "keep")
    assert network.seen == 70
    assert (values[:, 0] * 255).round().tolist() == list(range(70))


@pytest.mark.parametrize("name", ["test_resnet", "model"])
def test_a_second_start_encodes_no_image(demo, folder, tmp_path, monkeypatch, name):
    if name == "model":
        save_pretrained(create_hash_model("test_resnet", bits=12), tmp_path / "model", dataset="photos")
        name = str(tmp_path / "model")
    first, spaces = demo.load_spaces(demo.find_images(folder), name, [2], False, tmp_path / "keep")
    monkeypatch.setattr(demo, "write_kept", lambda file, kept: pytest.fail("nothing must be new"))
    for path in (folder / "empty.png", folder / "deep" / "broken.jpg"):
        path.unlink()
    again, same = demo.load_spaces(demo.find_images(folder), name, [2], False, tmp_path / "keep")
    assert again.captions == first.captions
    assert [space.codes for space in spaces.values()] == [space.codes for space in same.values()]


def test_a_folder_without_images_is_refused_in_one_line(demo, folder, monkeypatch, capsys):
    for name in ("a.png", "deep/b.JPG", "deep/deeper/c.bmp"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"no image is left\. 2 could not be read: deep/broken\.jpg"):
        demo.outputs(demo.find_images(folder), Mean(), tensor_of, "mean")
    (folder / "heic").mkdir()
    (folder / "heic" / "a.heic").touch()
    for root, message in (
        (folder / "nowhere", "is no folder"),
        (folder / "deep" / "deeper", "no image in"),
        (folder / "heic", "Files of other kinds were left out: 1 .heic (a.heic)"),
    ):
        monkeypatch.setattr(sys, "argv", ["demo.py", f"--images={root}"])
        with pytest.raises(SystemExit):
            demo.main()
        assert message in capsys.readouterr().err


def test_a_query_is_ranked_as_hamming_topk_does(demo, digits):
    pictures, spaces = digits
    for name, bits in (("digits, 16 bits", 16), ("digits, 24 bits", 24)):
        space = spaces[name]
        query, distances, rows = demo.rank(space, pictures.queries[3])
        inputs = demo.digit_tensor(pictures.queries[3])[None]
        assert query == encode(space.model, [inputs], progress=False)
        expected = hamming_topk(query, space.codes, None)
        assert torch.equal(distances, expected[0][0])
        assert torch.equal(rows, expected[1][0])
        assert (space.codes.bits, len(space.codes)) == (bits, 150)


def test_the_values_of_a_query_rank_all_images_beside_their_distances(demo, digits):
    pictures, spaces = digits
    space = spaces["digits, 16 bits"]
    query, distances, rows = demo.rank(space, pictures.queries[3], by_values=True)
    with torch.no_grad():
        values = space.model(demo.digit_tensor(pictures.queries[3])[None])
    assert torch.equal(rows, asymmetric_topk(values, space.codes, None)[1][0])
    assert rows.tolist() != demo.rank(space, pictures.queries[3])[2].tolist()
    expected = hamming_distance(query, space.codes[rows])[0]
    assert torch.equal(distances, expected)
    _, text, hits, _, _ = demo.show(pictures, spaces, pictures.queries[3], "digits, 16 bits", 4, 2, True)
    assert f"the nearest at distance {expected.min()}, the farthest at {expected.max()} of 16" in text
    assert [caption for _, caption in hits] == [
        f"d = {d} · {pictures.captions[row]}"
        for d, row in zip(expected[:4].tolist(), rows[:4].tolist(), strict=True)
    ]


def test_an_image_of_the_database_finds_itself_at_distance_0(demo, digits, tmp_path):
    pictures, spaces = digits
    pictures.read(7).save(tmp_path / "seven.png")
    picture, problem = demo.open_file(tmp_path / "seven.png")
    assert problem == ""
    _, distances, rows = demo.rank(spaces["digits, 24 bits"], picture)
    assert 7 in rows[distances == 0]


def test_the_page_shows_k_images_and_counts_those_within_the_radius(demo, digits):
    pictures, spaces = digits
    name, query = "digits, 16 bits", pictures.queries[0]
    _, distances, rows = demo.rank(spaces[name], query)
    _, text, hits, table, figure = demo.show(pictures, spaces, query, name, 4, 5)
    count = sum(distance <= 5 for distance in distances.tolist())
    assert 0 < count < 150
    assert text.startswith(f"**{count}** of 150 images lie within radius 5")
    assert [caption for _, caption in hits] == [
        f"d = {d} · {pictures.captions[row]}"
        for d, row in zip(distances[:4].tolist(), rows[:4].tolist(), strict=True)
    ]
    assert hits[0][0].tobytes() == pictures.read(int(rows[0])).tobytes()
    assert table.count("<tr>") == 5
    bars = [int(bar.get_height()) for bar in figure.axes[0].patches]
    assert bars == [distances.tolist().count(d) for d in range(17)]
    red = [bar.get_facecolor() == figure.axes[0].patches[0].get_facecolor() for bar in figure.axes[0].patches]
    assert red == [d <= 5 for d in range(17)]
    assert figure.get_facecolor()[3] == figure.axes[0].get_facecolor()[3] == 0  # also on a dark page


def test_a_bit_is_dark_or_light_and_red_where_it_differs(demo):
    query, code = np.array([True, True, False, False]), np.array([True, False, True, False])
    pixels = demo.code_pixels(code, query)
    assert pixels.shape == (demo.CELL, 4 * demo.CELL, 4)
    same, differs = demo.BIT_COLOURS
    middle = pixels[demo.CELL // 2, demo.CELL // 2 :: demo.CELL]
    assert middle.tolist() == [same[1].tolist(), differs[0].tolist(), differs[1].tolist(), same[0].tolist()]
    assert len({tuple(colour) for colour in [*same.tolist(), *differs.tolist()]}) == 4
    assert (pixels[:, :: demo.CELL, 3] == 0).all()  # a gap between cells


def test_the_red_bits_of_a_hit_are_as_many_as_its_distance(demo, digits):
    pictures, spaces = digits
    codes = spaces["digits, 24 bits"].codes
    query, distances, rows = demo.rank(spaces["digits, 24 bits"], pictures.queries[1])
    hit = unpack_codes(codes.packed[rows[50:51]], 24)[0].numpy() > 0
    pixels = demo.code_pixels(hit, unpack_codes(query.packed, 24)[0].numpy() > 0)
    middle = pixels[0, demo.CELL // 2 :: demo.CELL].tolist()
    assert sum(colour in demo.BIT_COLOURS[1].tolist() for colour in middle) == distances[50] > 0


@pytest.mark.parametrize(
    "content", [b"no image", b"", b"\x89PNG\r\n\x1a\n broken"], ids=["text", "empty", "png"]
)
def test_a_file_that_is_no_image_gives_a_message(demo, tmp_path, content):
    (tmp_path / "query.png").write_bytes(content)
    picture, problem = demo.open_file(tmp_path / "query.png")
    assert picture is None
    assert problem.startswith("query.png is no image that can be read: ")
    assert str(tmp_path) not in problem
    assert "0x" not in problem


def test_the_drawing_board_is_offered_for_digits_only(demo, digits, folder):
    pictures, spaces = digits
    photos, _ = demo.outputs(demo.find_images(folder), Mean(), tensor_of, "mean")
    for shown, expected in ((pictures, True), (demo.replace(photos, queries=[photos.read(0)]), False)):
        page = demo.build_page(shown, spaces)
        (tab,) = [block for block in page.blocks.values() if getattr(block, "label", "") == "Drawing"]
        assert tab.visible is expected


def test_the_page_gives_room_to_photos_of_more_than_pillow_takes(demo, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(demo, "build_page", lambda *_: pytest.fail("not reached"))
    monkeypatch.setattr(demo, "load_everything", lambda _: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    with pytest.raises(ZeroDivisionError):
        demo.main()
    assert 2 * Image.MAX_IMAGE_PIXELS > 20_000 * 12_000


def test_a_drawing_becomes_ink_on_white_paper_and_an_empty_one_a_message(demo):
    assert demo.open_drawing(None)[1].startswith("The paper is empty")
    paper = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    assert demo.open_drawing({"composite": paper})[1].startswith("The paper is empty")
    ImageDraw.Draw(paper).line([(140, 40), (140, 240)], fill="black", width=20)
    picture, problem = demo.open_drawing({"composite": paper})
    assert (problem, picture.getpixel((0, 0)), picture.getpixel((140, 140))) == ("", (255,) * 3, (0,) * 3)


def test_a_digit_looks_the_same_wherever_and_however_large_and_inverted(demo):
    paper = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(paper).rectangle([40, 20, 59, 79], fill="black")
    expected = demo.digit_tensor(paper)
    assert expected.shape == (1, 32, 32)
    moved = Image.new("RGB", (100, 100), "white")
    moved.paste(paper.crop((40, 20, 60, 80)), (3, 30))
    inverted = Image.eval(paper.resize((200, 200), Image.Resampling.NEAREST), lambda value: 255 - value)
    for other in (moved, inverted):
        torch.testing.assert_close(demo.digit_tensor(other), expected, atol=0.02, rtol=0)
    blank = demo.digit_tensor(Image.new("RGB", (100, 100), "white"))
    assert torch.isfinite(blank).all()


def test_models_of_ones_own_and_of_timm_are_hashed_side_by_side(demo, folder, tmp_path):
    model = create_hash_model("test_resnet", bits=12)
    save_pretrained(model, tmp_path / "model", dataset="photos")
    options = ["--images", folder, "--bits", 2, 8, "--no-pretrained", "--keep", tmp_path / "keep"]
    options += ["--model", tmp_path / "model", "--model", "test_resnet"]
    pictures, spaces = demo.load_everything(demo.arguments().parse_args(map(str, options)))
    assert len(pictures.queries) == 3
    assert [name.split(", ")[-1] for name in spaces] == ["12 bits", "2 bits", "8 bits"]
    for space in spaces.values():
        assert isinstance(space.codes, HashCodes)
        assert len(space.codes) == 3
        _, distances, rows = demo.rank(space, pictures.read(1))
        assert 1 in rows[distances == 0]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(demo, digits):
    page = demo.build_page(*digits)
    _, url, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, css=demo.CSS, quiet=True, share=False
    )
    yield url
    page.close()


def captions(page):
    return [text.strip() for text in page.locator("#hits .caption-label").all_inner_texts()]


def test_in_the_browser(demo, digits, served, browser, tmp_path):
    from playwright.sync_api import expect

    pictures, spaces = digits
    requests, errors = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served)

    def must_show(query, name, k, radius):
        _, text, hits, _, _ = demo.show(pictures, spaces, query, name, k, radius)
        expect(page.locator("#text")).to_have_text(text.replace("**", ""))
        expect(page.locator("#bits tr")).to_have_count(k + 1)
        expect(page.locator("#hits .caption-label")).to_have_text([caption for _, caption in hits])

    must_show(pictures.queries[0], "digits, 24 bits", 10, 2)

    pictures.read(7).save(tmp_path / "seven.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "seven.png")
    must_show(pictures.read(7), "digits, 24 bits", 10, 2)
    assert captions(page)[0].startswith("d = 0 ")

    page.get_by_label("digits, 16 bits").click()
    must_show(pictures.read(7), "digits, 16 bits", 10, 2)
    for slider, value in (("#k", "3"), ("#radius", "6")):
        page.locator(f"{slider} input[type=number]").fill(value)
        page.locator(f"{slider} input[type=number]").press("Enter")
    must_show(pictures.read(7), "digits, 16 bits", 3, 6)

    (tmp_path / "notes.txt").write_text("no image")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#problem")).to_contain_text("notes.txt is no image that can be read")
    expect(page.locator("#bits tr")).to_have_count(0)
    assert "Traceback" not in page.content()

    page.locator("#examples button.thumbnail-lg").nth(4).click()
    must_show(pictures.queries[4], "digits, 16 bits", 3, 6)
    expect(page.locator("#problem")).to_have_text("")

    page.get_by_role("tab", name="Drawing").click()
    page.get_by_role("button", name="Search this drawing").click()
    expect(page.locator("#problem")).to_contain_text("The paper is empty")
    page.locator("button[aria-label='Brush']").click()
    canvas = page.locator("canvas").first.bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + canvas["height"] / 2, steps=10)
    page.mouse.up()
    page.get_by_role("button", name="Search this drawing").click()
    expect(page.locator("#bits tr")).to_have_count(4)
    expect(page.locator("#problem")).to_have_text("")

    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert errors == []
    assert [url for url in requests if not url.startswith((served, "data:", "blob:"))] == []
    page.close()
