"""docs/migrating.md has every old flag, and names no option that is not there."""

from __future__ import annotations

import re

import click
import pytest
from conftest import ROOT

from job.cli import cli

# The last version of examples/image_retraining/retrain.py in TensorFlow Hub's repository: the one
# whose default module is inception_v3/feature_vector/3.
RETRAIN = """
    image_dir output_graph intermediate_output_graphs_dir intermediate_store_frequency output_labels
    summaries_dir how_many_training_steps learning_rate testing_percentage validation_percentage
    eval_step_interval train_batch_size test_batch_size validation_batch_size
    print_misclassified_test_images bottleneck_dir final_tensor_name flip_left_right random_crop
    random_scale random_brightness tfhub_module saved_model_dir logging_verbosity checkpoint_path
"""

# tensorflow_hub/tools/make_image_classifier/make_image_classifier.py of tensorflow-hub 0.13.0.
MAKE_IMAGE_CLASSIFIER = """
    image_dir tfhub_module image_size saved_model_dir tflite_output_file labels_output_file
    summaries_dir assert_accuracy_at_least train_epochs do_fine_tuning batch_size learning_rate
    momentum dropout_rate set_memory_growth l1_regularizer l2_regularizer label_smoothing
    validation_split do_data_augmentation rotation_range horizontal_flip width_shift_range
    height_shift_range shear_range zoom_range distribution_strategy use_tf_data_input
"""

FLAGS = {"retrain.py": RETRAIN, "make_image_classifier": MAKE_IMAGE_CLASSIFIER}

TEXT = (ROOT / "docs" / "migrating.md").read_text()

RUN: click.Command = cli.commands["run"]


def rows(text: str) -> list[list[str]]:
    """Give the cells of every row of the tables in a text, the rows above each rule left out."""
    lines = [line for line in text.splitlines() if line.startswith("| `--")]
    return [re.split(r"\s*\|\s*", line)[1:-1] for line in lines]


def named_options() -> list[tuple[str, str]]:
    """Give each option that is named, with the value beside it: all but the first cell of a row."""
    prose = [line for line in TEXT.splitlines() if not line.startswith("|")]
    cells = [cell for row in rows(TEXT) for cell in row[1:]]
    found = re.findall(r"`(--[a-z0-9-]+)(?: ([a-z0-9-]+))?`", "\n".join(prose + cells))
    return sorted(set(found))


@pytest.mark.parametrize("program", FLAGS)
def test_every_old_flag_has_its_row(program: str) -> None:
    """All are there, each once, and none that it never had."""
    section = TEXT.partition(f"\n## {program}\n")[2].partition("\n## ")[0]
    assert sorted(row[0] for row in rows(section)) == sorted(
        f"`--{flag}`" for flag in FLAGS[program].split()
    )


def test_every_row_says_something() -> None:
    """Four cells: the flag, its default, an option or none, and how it is now."""
    for flag, _default, today, note in rows(TEXT):
        assert today.startswith("`--") or today == "", flag
        assert note, flag


@pytest.mark.parametrize(("option", "value"), named_options())
def test_every_option_is_there(option: str, value: str) -> None:
    """`run` has it, and takes the value that stands beside it."""
    params = {name: param for param in RUN.params for name in param.opts}
    assert option in params
    if value:
        kind = params[option].type
        assert isinstance(kind, click.Choice)
        assert value in kind.choices
