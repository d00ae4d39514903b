"""Options: what is wrong is named with what would be right."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from fedzo.config import make_options, option_types, parse_options, read_toml, write_toml
from fedzo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One option of every type."""

    model: Annotated[str, "Must be given."]
    batch_size: Annotated[int, "A count."] = 16
    learning_rate: Annotated[float, "A rate."] = 1e-4
    dry_run: Annotated[bool, "A switch."] = False
    held_out: Annotated[str | None, "May be absent."] = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"option batch-size is {self.batch_size}; expected at least 1")


def test_option_types_and_help_come_from_the_annotations():
    assert option_types(Options)["batch_size"] == (int, "A count.")
    assert option_types(Options)["held_out"] == (str | None, "May be absent.")
    assert list(option_types(Options)) == ["model", "batch_size", "learning_rate", "dry_run", "held_out"]


@pytest.mark.parametrize("spelling", ["batch-size", "batch_size"])
def test_keys_are_known_in_either_spelling(spelling):
    assert parse_options(Options, {spelling: 0, "dry-run": False, "held_out": ""}, "here") == {
        "batch_size": 0,
        "dry_run": False,
        "held_out": "",
    }


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batchsize", "batch-size"),
        ("batch-sizes", "batch-size"),
        ("learnin_rate", "learning-rate"),
        ("Model", "model"),
        ("heldout", "held-out"),
    ],
)
def test_an_unknown_option_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=rf"run\.toml: option '{key}' is unknown.*'{nearest}'$"):
        parse_options(Options, {"batch_size": 3, key: 1}, "run.toml")


@pytest.mark.parametrize("key", ["", "zzz", "日本"])
def test_an_option_that_is_near_to_nothing_names_all(key):
    with pytest.raises(ConfigError, match="is unknown; choose one of: model, batch-size"):
        parse_options(Options, {key: 1}, "run.toml")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch-size", "16", "int"),
        ("batch-size", 16.0, "int"),
        ("batch-size", True, "int"),
        ("batch-size", None, "int"),
        ("batch-size", [16], "int"),
        ("learning-rate", "1e-4", "float"),
        ("learning-rate", False, "float"),
        ("dry-run", 1, "bool"),
        ("dry-run", "true", "bool"),
        ("model", 3, "str"),
        ("model", {"name": "x"}, "str"),
        ("held-out", 3, "str"),
        ("held-out", True, "str"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_expected_one(key, value, expected):
    with pytest.raises(ConfigError) as found:
        parse_options(Options, {key: value}, "run.toml")
    assert f"run.toml: option '{key}' is {value!r}; expected {expected}" in str(found.value)


def test_a_whole_number_serves_as_a_float_and_zero_and_false_are_values():
    parsed = parse_options(Options, {"learning_rate": 0, "batch_size": 1, "dry_run": False}, "here")
    assert parsed == {"learning_rate": 0.0, "batch_size": 1, "dry_run": False}
    assert isinstance(parsed["learning_rate"], float)


def test_an_option_that_must_be_given_is_named():
    with pytest.raises(ConfigError, match="--model must be given"):
        make_options(Options, {"batch_size": 3})
    assert make_options(Options, {"model": ""}) == Options(model="")


def test_checks_of_the_options_are_config_errors():
    with pytest.raises(ConfigError, match="batch-size is 0"):
        make_options(Options, {"model": "m", "batch_size": 0})


def test_written_options_are_read_back(tmp_path):
    options = Options(model='quotes " and \\ and ünï', learning_rate=1e-07, dry_run=True)
    write_toml(tmp_path / "config.toml", options)
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert "batch-size = 16" in text
    assert "held" not in text, "what has no value is left out"
    values = read_toml(tmp_path / "config.toml")
    assert make_options(Options, parse_options(Options, values, "config.toml")) == options


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"batch-size 16\n", "not TOML.*line 1"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"model = 'open\n", "not TOML"),
        (b"model = '\xff\xfe'\n", "config.toml"),
        (None, "cannot be read: No such file"),
    ],
    ids=["no equals sign", "a key twice", "an open string", "no UTF-8", "absent"],
)
def test_toml_that_cannot_be_read_is_a_config_error(tmp_path, content, match):
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=match) as found:
        read_toml(path)
    assert str(path) in str(found.value)


def test_a_table_in_the_file_is_an_unknown_option(tmp_path):
    (tmp_path / "config.toml").write_text("[training]\nbatch-size = 3\n")
    with pytest.raises(ConfigError, match="'training' is unknown"):
        parse_options(Options, read_toml(tmp_path / "config.toml"), "config.toml")
