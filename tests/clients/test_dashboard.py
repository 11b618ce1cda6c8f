"""The dashboard in a real browser: Debian's Chromium, driven by Playwright."""

import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from clients.conftest import BUNDLED, KEY, PROMPT, Server, Start
from coterie.engine.source import open_source
from profiles.conftest import write_profile
from profiles.synthetic import Router, run_facts, shapes

REQUIRED = "COTERIE_REQUIRE_CHROMIUM"
"""Where this is set, a missing browser is a failure: CI must not skip these tests."""
PATIENCE_MS = 60_000
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 720}

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        message = "Chromium is not installed (on Debian: apt install chromium)."
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        # Its sandbox is not for root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=found, args=options)
        yield chromium
        chromium.close()


Opens = Callable[..., Page]


@pytest.fixture
def opens(browser: Browser) -> Iterator[Opens]:
    """Opens a dashboard; at the end no page may have complained, or asked anybody but its server."""
    elsewhere: list[str] = []
    complaints: list[str] = []
    contexts = []

    def open_one(server: Server, *, ready: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce"} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # What a server refuses is told here, too; all else is a fault of the page, such as what its policy forbids.
        page.on("console", lambda said: complaints.append(said.text) if "status of" not in said.text else None)
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((f"{server.url}/", f"blob:{server.url}")) else elsewhere.append(asked.url)
            ),
        )
        page.goto(server.url)
        if ready:
            expect(page.locator("#status")).to_have_text("Ready")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert [one for one in complaints if "net::ERR_FAILED" not in one] == []


def metrics(server: Server) -> dict[str, dict[str, float]]:
    """Name → layer → value, of what there is for each layer."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels.get("layer", "")] = sample.value
    return found


def say(page: Page, text: str, **parameters: str) -> None:
    if page.locator(".settings[open]").count() == 0:
        page.get_by_text("Parameters").click()
    for name, value in ({"temperature": "0", "max_tokens": "12"} | parameters).items():
        page.locator(f"[name={name}]").fill(value)
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def test_a_question_is_answered(server: Server, opens: Opens) -> None:
    page = opens(server)
    say(page, PROMPT)
    answer = page.locator(".message.assistant")
    expect(answer.locator(".meta")).to_contain_text("12 tokens")
    expect(answer.locator(".meta")).to_contain_text("hit rate")
    said = answer.locator(".said").inner_text()
    assert said.strip()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    # The conversation goes on with what was said.
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "And then")
    messages = asked.value.post_data_json["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].strip() == said.strip()
    expect(page.locator(".message.assistant .meta")).to_have_count(2)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)


def test_pictures_and_sounds_are_sent(server: Server, opens: Opens) -> None:
    page = opens(server)
    for sample, name in (("sandal.png", "sandal"), ("dog.wav", "dog")):
        page.locator("#attach").set_input_files(str(BUNDLED / "samples" / sample))
        expect(page.get_by_role("button", name=f"Remove {sample}")).to_be_visible()
        say(page, "")
        expect(page.locator(".message.assistant .meta").last).to_contain_text("tokens")
        assert name in page.locator(".message.assistant .said").last.inner_text()
        page.get_by_role("button", name="New conversation").click()
    page.locator("#attach").set_input_files({"name": "x.gif", "mimeType": "image/gif", "buffer": b"GIF89a"})
    expect(page.locator("#chat-status")).to_contain_text("pictures are PNG, JPEG and WebP; sounds are WAV")


def test_the_map_says_what_the_metrics_say(server: Server, opens: Opens) -> None:
    page = opens(server)
    say(page, PROMPT)
    expect(page.locator(".message.assistant .meta")).to_be_visible()
    page.get_by_text("Layer by layer", exact=True).click()
    found = metrics(server)
    rows = page.locator("#layers tbody tr")
    expect(rows).to_have_count(8)
    for layer in range(8):
        choices = found["coterie_layer_expert_choices_total"][str(layer)]
        cells = rows.nth(layer).locator("td")
        expect(cells.nth(0)).to_have_text(f"{choices:,.0f}")
        expect(cells.nth(1)).to_have_text(f"{found['coterie_layer_expert_cache_experts'][str(layer)]:.0f} of 32")
        asked = found["coterie_layer_experts_requested_total"][str(layer)]
        hits = asked - found["coterie_layer_expert_misses_total"][str(layer)]
        expect(cells.nth(2)).to_have_text(f"{100 * hits / asked:.1f} %")
        union = found["coterie_layer_decode_expert_union_total"][str(layer)]
        expect(cells.nth(3)).to_have_text(f"{union / found['coterie_layer_decode_steps_total'][str(layer)]:.2f}")
    # A row of the map, expert by expert, by keyboard.
    page.locator("#heat").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    total, resident = 0, 0
    for expert in range(32):
        readout = page.locator("#readout").inner_text()
        assert readout.startswith(f"thinker layer 1, expert {expert} · chosen by ")
        total += int(re.search(r"by ([\d,]+) tokens", readout)[1].replace(",", ""))
        resident += " · in memory" in readout
        assert readout.endswith("bf16")
        page.keyboard.press("ArrowRight")
    assert total == found["coterie_layer_expert_choices_total"]["1"]
    assert resident == found["coterie_layer_expert_cache_experts"]["1"]
    page.keyboard.press("End")
    page.keyboard.press("PageDown")
    assert "layer 7, expert 31" in page.locator("#readout").inner_text()


def test_an_answer_is_cancelled_and_the_model_is_free(server: Server, opens: Opens) -> None:
    page = opens(server)
    before = sum(metrics(server).get("coterie_cancelled_total", {"": 0}).values())
    for how in ("button", "Escape"):
        say(page, PROMPT, max_tokens="3000")
        expect(page.locator("#chat-status")).to_have_text("Answering")
        expect(page.locator("#status")).to_have_text("Working")
        if how == "button":
            page.get_by_role("button", name="Cancel").click()
        else:
            page.get_by_label("Message", exact=True).press("Escape")
        expect(page.locator("#chat-status")).to_have_text("Cancelled")
        expect(page.locator("#status")).to_have_text("Ready")
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        assert page.locator(".message.assistant .said").last.inner_text().strip()
    assert sum(metrics(server)["coterie_cancelled_total"].values()) == before + 2
    expect(page.locator("#running")).to_have_text("0")


def test_what_is_refused_is_told_and_what_was_written_is_kept(server: Server, opens: Opens) -> None:
    page = opens(server)
    say(page, "word " * 5000)
    expect(page.locator(".message.assistant .error")).to_contain_text("too long")
    assert page.get_by_label("Message", exact=True).input_value().startswith("word word")


def test_everything_is_reached_by_keyboard(server: Server, opens: Opens) -> None:
    page = opens(server)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            """() => {
              const one = document.activeElement;
              if (one === document.body) return "";
              const shown = ["radio", "file"].includes(one.type) ? one.nextElementSibling : one;
              const style = getComputedStyle(shown);
              return `${one.id || one.name || one.textContent.trim()}|${style.outlineStyle}|${style.outlineWidth}`;
            }"""
        )
        if name == "":
            break
        reached.append(name.split("|"))
    order = [name for name, _, _ in reached]
    wanted = ["Skip to the chat", "Experts", "Profile", "Chat", "view", "heat", "Layer by layer", "prompt", "send",
              "attach", "Parameters"]  # fmt: skip
    assert [name for name in order if name in wanted] == wanted
    # What has the focus is seen to have it.
    assert [one for one in reached if one[1] == "none" or one[2] == "0px"] == []
    page.locator("[name=view]").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("[name=view][value=lately]")).to_be_checked()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#legend")).to_contain_text("bf16")


def test_every_control_has_a_name_and_enough_contrast(server: Server, opens: Opens) -> None:
    nameless = """() => [...document.querySelectorAll("button, input, select, textarea, canvas, [role=region]")]
      .filter((one) => !(one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim()))
      .map((one) => one.outerHTML)"""
    contrast = """(pairs) => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => {
        const hex = style.getPropertyValue(`--${name}`).trim();
        const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
          .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      return pairs.map(([a, b]) => {
        const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
      });
    }"""
    texts = [["text", "surface"], ["text", "bg"], ["text", "sunken"], ["text", "bad-weak"], ["muted", "surface"],
             ["muted", "sunken"], ["accent", "surface"], ["on-accent", "accent"], ["bad", "surface"]]  # fmt: skip
    for scheme in ("light", "dark"):
        page = opens(server, color_scheme=scheme)
        assert page.evaluate(nameless) == []
        assert min(page.evaluate(contrast, texts)) >= 4.5
        assert min(page.evaluate(contrast, [["line-strong", "surface"], ["cell-warm-high", "cell"]])) >= 3
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
            "light": "rgb(245, 247, 248)", "dark": "rgb(15, 19, 22)",
        }[scheme]  # fmt: skip


def test_it_fits_on_a_narrow_screen(server: Server, opens: Opens) -> None:
    page = opens(server, viewport=NARROW)
    page.get_by_text("Layer by layer", exact=True).click()
    page.get_by_text("Parameters").click()
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    say(page, PROMPT)
    expect(page.locator(".message.assistant .meta")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]


def test_a_server_that_does_not_answer_is_told_and_found_again(server: Server, opens: Opens) -> None:
    page = opens(server)
    page.route("**/coterie/state", lambda route: route.abort())
    expect(page.get_by_role("alert").first).to_contain_text("does not answer")
    page.unroute("**/coterie/state")
    expect(page.locator("#status")).to_have_text("Ready")
    expect(page.locator("#trouble")).to_be_hidden()


def test_without_a_profile_it_says_how_to_get_one(server: Server, opens: Opens) -> None:
    page = opens(server)
    expect(page.locator("#profile-empty")).to_contain_text("coterie profile record")
    expect(page.locator("#profile-form")).to_be_hidden()


@pytest.fixture(scope="module")
def locked(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with a key, and with a profile."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"{KEY}\n")
    profile = folder / "experts.db"
    run = run_facts(shapes(layers=1), identity=open_source("bundled").identity)
    write_profile(profile, Router(layers=1, planted={(0, "code"): (3,)}), {"code": 16, "prose": 16}, run=run)
    return start("bundled", "--api-key-file", str(folder / "keys"), "--profile", str(profile))


def unlock(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_it_asks_for_the_key_and_keeps_it_in_this_tab(locked: Server, opens: Opens) -> None:
    page = opens(locked, ready=False)
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Locked")
    expect(page.locator("#key-error")).to_be_empty()
    assert page.evaluate("document.activeElement.id") == "key"
    unlock(page, "not-this-one-either")
    expect(page.locator("#key-error")).to_have_text("This key does not open the server.")
    unlock(page, KEY)
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("Ready")
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready")
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie, location.href]") == [
        [KEY], 0, "", f"{locked.url}/",
    ]  # fmt: skip
    say(page, PROMPT)
    expect(page.locator(".message.assistant .meta")).to_contain_text("12 tokens")
    # Another tab knows nothing of it.
    expect(opens(locked, ready=False).get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Key…").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_without_the_key_the_page_shows_nothing_of_the_model(locked: Server, opens: Opens) -> None:
    page = opens(locked, ready=False)
    page.get_by_role("button", name="Not now").click()
    assert "bundled" not in page.content()
    assert page.locator("#layers tbody tr").count() == 0


def test_the_profile_says_which_experts_handle_something(locked: Server, opens: Opens) -> None:
    page = opens(locked, ready=False)
    unlock(page, KEY)
    page.get_by_label("Domain").select_option("code")
    page.get_by_role("button", name="Show", exact=True).click()
    first = page.locator("#ranking tbody tr").first
    expect(first).to_contain_text("layer 0, 3")
    expect(first).to_contain_text("yes")
    expect(page.locator("#profile-status")).to_contain_text("1 specialist among 8 experts")
    expect(page.locator("#legend")).to_contain_text("in the list below")
    first.get_by_role("button").press("Enter")
    card = page.locator("#card")
    expect(card).to_contain_text("Expert 3 of text layer 0")
    expect(card).to_be_focused()


def test_the_screens_are_kept_for_people_to_look_at(server: Server, locked: Server, opens: Opens) -> None:
    """Where ``COTERIE_SCREENS`` names a folder, pictures are put there."""
    folder = os.environ.get("COTERIE_SCREENS")
    if folder is None:
        pytest.skip("COTERIE_SCREENS names no folder for pictures")
    for scheme in ("light", "dark"):
        for name, size in (("wide", WIDE), ("narrow", NARROW)):
            page = opens(locked, ready=False, color_scheme=scheme, viewport=size)
            page.screenshot(path=Path(folder) / f"key-{scheme}-{name}.png")
            unlock(page, KEY)
            say(page, PROMPT)
            expect(page.locator(".message.assistant .meta")).to_be_visible()
            page.locator("#profile-form button").click()
            expect(page.locator("#ranking tbody tr").first).to_be_visible()
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=Path(folder) / f"{scheme}-{name}.png", full_page=True)
