"""Pushing to the hub, against a stand-in for it: mistakes are found before training, and a failure loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from typer.testing import CliRunner

from training import tiny
from xtoken.config import parse_config
from xtoken.errors import XTokenError
from xtoken.training import distil
from xtoken.training.hub import check_push, push_folder

TEXTS = tiny.documents(20)


class FakeHub:
    """What the hub would answer, and what it was sent."""

    def __init__(self) -> None:
        self.token: str | None = "hf_xxx"
        self.user: dict[str, Any] = {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}}
        self.down = False
        self.asked = 0
        self.repos: dict[str, bool | None] = {}
        self.files: dict[str, dict[str, bytes]] = {}

    def whoami(self) -> dict[str, Any]:
        self.asked += 1
        if self.down:
            raise ConnectionError("no route to the hub\nand more")
        return self.user

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        self.repos[repo] = private
        return f"https://hub.example/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> None:
        if self.down:
            raise ConnectionError("no route to the hub\nand more")
        there = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        sent = filter_repo_objects(there, allow_patterns=allow_patterns)  # as the client does
        self.files[repo_id] = {name: (Path(folder_path) / name).read_bytes() for name in sent}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: fake.token)
    return fake


def config(folder: Path, **output: Any) -> dict[str, Any]:
    return {
        "student": {"model": str(tiny.student_folder(folder / "base"))},
        "optim": {"steps": 1, "batch_size": 2},
        "output": {"folder": str(folder / "out"), "push_to_hub": "me/student"} | output,
    }


def test_a_finished_run_is_uploaded_with_its_card_and_nothing_else(tmp_path: Path, hub: FakeHub) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret-notes.txt").write_text("mine")
    (tmp_path / "out" / "secret.json").write_text("{}")
    result = distil(config(tmp_path, private=True), texts=TEXTS, quiet=True)
    assert (result.pushed_to, result.push_failed) == ("https://hub.example/me/student", False)
    assert hub.repos == {"me/student": True}
    sent = hub.files["me/student"]
    assert set(sent) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(content == (tmp_path / "out" / name).read_bytes() for name, content in sent.items())


def test_a_failing_upload_leaves_the_run_whole_and_says_how_to_push_later(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def upload(**_: Any) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(hub, "upload_folder", upload)
    result = distil(config(tmp_path, private=True), texts=TEXTS, quiet=True)
    assert (result.pushed_to, result.push_failed, result.steps) == (None, True, 1)
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "no route to the hub" in caplog.text
    assert f"xtoken push {tmp_path / 'out'} me/student --private" in caplog.text


def test_what_the_message_says_works_later(tmp_path: Path, hub: FakeHub) -> None:
    from xtoken.cli import app

    distil(config(tmp_path, push_to_hub=None), texts=TEXTS, quiet=True)
    found = CliRunner().invoke(app, ["push", str(tmp_path / "out"), "me/student", "--private"])
    assert found.exit_code == 0, found.output
    assert "https://hub.example/me/student" in found.stdout
    assert hub.repos == {"me/student": True}
    assert "model.safetensors" in hub.files["me/student"]
    hub.down = True
    found = CliRunner().invoke(app, ["push", str(tmp_path / "out"), "me/student"])
    assert found.exit_code == 2
    assert "no route to the hub" in found.stderr


def test_the_command_ends_with_an_error_where_the_push_failed(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    from xtoken.cli import app

    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(config(tmp_path) | {"data": {"files": [str(tmp_path / "text.txt")]}})
    )
    good = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
    assert good.exit_code == 0
    assert "pushed to https://hub.example/me/student" in good.stdout

    def upload(**_: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "upload_folder", upload)
    bad = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml"), "--overwrite"])
    assert bad.exit_code == 2
    assert "student saved in" in bad.stdout
    assert "push it later by: xtoken push" in " ".join(bad.stderr.split())


@pytest.mark.parametrize(
    ("repo", "change", "message"),
    [
        ("me/a b", {}, "is no name of a repository"),
        ("student", {}, "expected USER/NAME"),
        ("me/a/b", {}, "is no name of a repository"),
        ("me/student", {"token": None}, "there is none: log in"),
        ("me/student", {"down": True}, "cannot be reached, so pushing to me/student would fail: no route to the hub"),
        ("them/student", {}, "belongs to me, who cannot write to them; it can to me, us"),
        ("me/student", {"user": {"name": "me", "auth": {"accessToken": {"role": "read"}}}}, "the token may only read"),
    ],
)
def test_a_mistake_is_found_before_anything_is_loaded(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, repo: str, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    monkeypatch.setattr("xtoken.training.run.gather", lambda *_: pytest.fail("the models were loaded"))
    with pytest.raises(XTokenError, match=message):
        distil(config(tmp_path, push_to_hub=repo), texts=TEXTS, quiet=True)
    assert not (tmp_path / "out").exists()
    assert hub.repos == {}


def test_an_organisation_of_ones_own_will_do_and_one_process_asks(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_push("us/student")
    monkeypatch.setenv("RANK", "1")
    check_push("us/student")
    assert hub.asked == 1


def test_a_folder_without_a_model_is_not_pushed(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(XTokenError, match=r"holds no model to push: there is no \.safetensors file"):
        push_folder(tmp_path, "me/student")
    assert hub.repos == {}


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(XTokenError, match="push_to_hub needs a folder"):
        parse_config({"output": {"push_to_hub": "me/student"}})
    with pytest.raises(XTokenError, match="private has no effect without push_to_hub"):
        parse_config({"output": {"folder": "x", "private": True}})


def test_an_interrupted_run_is_not_pushed(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from xtoken.training.callbacks import StopRequest

    def stop(self: StopRequest, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.asked = control.should_save = control.should_training_stop = True

    monkeypatch.setattr(StopRequest, "on_step_end", stop)
    result = distil(config(tmp_path) | {"optim": {"steps": 5, "batch_size": 2}}, texts=TEXTS, quiet=True)
    assert (result.interrupted, result.push_failed, hub.files) == (True, False, {})
    assert not (tmp_path / "out" / "README.md").exists()
