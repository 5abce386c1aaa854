"""Names of the Hub, and what its refusals become; tests/conversion/test_publish.py asks a server that speaks for it."""

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from llada_core.hub import fetch_checkpoint, hub_errors, is_hub_id, local_folder

MODEL = "tester/tiny"


@pytest.mark.parametrize(
    "name, is_id, is_id_with_owner",
    [
        ("GSAI-ML/LLaDA-8B-Base", True, True),
        ("gpt2", True, False),
        ("owner/name_1.5", True, True),
        ("./nowhere", False, False),
        ("~/models/x", False, False),
        ("a/b/c", False, False),
        ("C:\\models", False, False),
        ("a name", False, False),
        ("-a/b", False, False),
        ("a/b.git", False, False),
        ("", False, False),
        ("a/..", False, False),
        ("../x", False, False),
        ("./.", False, False),
        ("müller/modell", False, False),
        ("a/" + "b" * 300, False, False),
        ("a" * 300 + "/b", False, False),
        (None, False, False),
        (5, False, False),
    ],
)
def test_a_name_is_an_id_if_the_hub_would_take_it(name, is_id, is_id_with_owner) -> None:
    assert (is_hub_id(name), is_hub_id(name, with_owner=True)) == (is_id, is_id_with_owner)


def test_a_folder_comes_before_an_id_and_a_file_is_neither(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder(MODEL) is None
    (tmp_path / MODEL).mkdir(parents=True)
    assert fetch_checkpoint(MODEL).samefile(local_folder(MODEL))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="`file` is a file; name the folder that holds it"):
        local_folder("file")
    with pytest.raises(FileNotFoundError, match=r"There is no folder `\./nowhere`; name a checkpoint folder or a Hub"):
        local_folder("./nowhere")


def test_an_offline_process_is_told_which_variable_forbids_it(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = rf"`{MODEL}` is on the Hub, and `HF_HUB_OFFLINE` forbids network access; unset it"
    for error in (OfflineModeIsEnabled("no"), LocalEntryNotFoundError("not in the cache")):
        with pytest.raises(OSError, match=words), hub_errors(MODEL):
            raise error
        with pytest.raises(OSError, match=words), hub_errors(MODEL):
            raise ValueError("a library's own words") from error


def test_an_error_that_is_not_the_hubs_passes() -> None:
    with pytest.raises(OSError, match=r"^disk$"), hub_errors(MODEL):
        raise OSError("disk")
