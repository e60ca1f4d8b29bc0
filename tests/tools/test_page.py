"""The page: complete in itself, and a real browser shows it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

import batchnorm
from gallery import GALLERY
from tool_models import dense, rows

pytestmark = pytest.mark.keras

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars"
)


def sick_page(path):
    model, data = GALLERY["poisoned"].make("ours")
    return batchnorm.inspect(model, data).save(path / "report.html")


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    text = sick_page(tmp_path).read_text()
    sources = re.findall(r"(?:src|href)=\"([^\"]*)\"", text)
    assert len(sources) == 4  # the icon and three plots
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_names_are_escaped(tmp_path):
    # a TensorFlow graph takes no < in a name, from Keras neither
    name = "a>b" if keras.backend.backend() == "tensorflow" else "<b>&amp"
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.BatchNormalization(name=name), keras.layers.Dense(2)]
    )
    text = batchnorm.inspect(model, rows(32)).save(tmp_path / "report.html").read_text()
    assert f"<td>{html.escape(name)}</td>" in text
    assert name not in text


def test_a_healthy_model_gets_a_page_that_says_so(tmp_path):
    model = dense("ours")
    batchnorm.reestimate(model, rows(64), batch_size=64)
    text = batchnorm.inspect(model, rows(64), batch_size=64).save(tmp_path / "a.html").read_text()
    assert "<h1>Batch normalization: no alarm</h1>" in text
    assert "The statistics fit the data." in text


def test_a_missing_matplotlib_is_named(monkeypatch, tmp_path):
    from batchnorm.tools import page

    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    report = batchnorm.inspect(dense("ours"), rows(32))
    with pytest.raises(RuntimeError, match="matplotlib") as raised:
        report.save(tmp_path / "report.html")
    assert str(raised.value) == (
        "inspect: matplotlib must be installed for a page with plots; got none. Run: pip install "
        "'batchnorm[demo]', or save the numbers as .json."
    )


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: looked for {', '.join(BROWSERS)}")
    return found


def test_a_browser_shows_the_verdict_the_plots_and_the_rows(browser, tmp_path):
    path, script = sick_page(tmp_path), tmp_path / "seen.html"
    # what the browser made of it, written into the page's title where --dump-dom can read it
    probe = (
        "<script>addEventListener('load', () => { const all = [...document.images];"
        "document.title = 'seen ' + all.filter(i => i.naturalWidth > 500).length + ' '"
        "+ document.querySelectorAll('#rows tbody tr').length + ' '"
        "+ getComputedStyle(document.querySelector('.card.error')).borderLeftColor; });</script>"
    )
    script.write_text(path.read_text().replace("</body>", probe + "</body>"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *QUIET.split(), profile, "--dump-dom", script.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>seen 3 3 rgb(198, 47, 47)</title>" in done.stdout
    shot = tmp_path / "page.png"
    subprocess.run(
        [
            browser,
            *QUIET.split(),
            profile,
            f"--screenshot={shot}",
            "--window-size=1100,1900",
            path.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    from matplotlib.image import imread

    picture = imread(shot)
    assert picture.shape[:2] == (1900, 1100)
    assert len(np.unique(picture[::7, ::7].reshape(-1, picture.shape[-1]), axis=0)) > 20
