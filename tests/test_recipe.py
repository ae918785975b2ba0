from __future__ import annotations

import re

import pytest

from polycast import targets
from polycast.errors import InputError, RecipeError
from polycast.promise import Promise
from polycast.recipe import Recipe


def test_every_precision_of_every_target_has_a_recipe():
    for kind in targets.catalogue().values():
        for precision in kind().precisions:
            assert Recipe.of(kind(), precision).name == precision


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(RecipeError, match="unknown precision for cpu 'fp61'") as caught:
        Recipe.of(targets.find("cpu"), "fp61")
    assert caught.value.hint == "Did you mean 'fp16'?"


@pytest.mark.parametrize(
    ("target", "precision", "hint"),
    [
        ("cpu@tvm", "int2", "-t cpu has it, and -p int8 comes nearest here"),
        ("cpu@litert", "fp16", "-t cpu has it, and -p fp16-weights comes nearest here"),
        ("cuda", "int8", "-t cuda@tensorrt has it, and -p int8-weights comes nearest here"),
        ("cpu:vnni", "fp16-weights", "-t cpu:vnni@litert has it, and -p fp16 comes nearest here"),
        ("rocm", "bf16", "-p fp16 comes nearest here"),
    ],
)
def test_a_precision_that_a_target_does_not_have_names_what_comes_nearest(target, precision, hint):
    with pytest.raises(RecipeError, match=f"{target} has no {precision}: ") as caught:
        Recipe.of(targets.find(target), precision)
    assert caught.value.hint == hint
    for spelling in re.findall(r"-t (\S+)", hint):
        assert Recipe.of(targets.find(spelling), precision)
    [near] = re.findall(r"-p (\S+)", hint)
    assert Recipe.of(targets.find(target), near)


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(RecipeError, match="unknown target 'cpuu'") as caught:
        targets.find("cpuu")
    assert "'cpu'" in caught.value.hint


def test_toml(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('passes = ["clean", "fuse_gelu"]\n[promise]\nprecision = "fp16"\nweights = 0.5\n')
    recipe = Recipe.read(path)
    assert (recipe.name, str(recipe.pipeline)) == ("small", "clean | fuse_gelu")
    assert recipe.promise == Promise("fp16", 0.5, 0.0)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("passes = [", InputError, "is not TOML"),
        ("", RecipeError, "has no passes"),
        ("passes = 3", RecipeError, "neither a text nor a list"),
        ("pases = []", RecipeError, "unknown key of the recipe r.toml 'pases'"),
        ('passes = "clean"\nname = "../x"', RecipeError, "letters, digits"),
        ('passes = "clean"\n[promise]\nweights = 2', RecipeError, "not a share from 0 to 1"),
        ('passes = "clean"\n[promise]\nweights = 0.5', RecipeError, "names no precision"),
        ('passes = "clean"\n[promise]\nwieghts = 0.5', RecipeError, "unknown key of promise 'wieghts'"),
        ('passes = ["clean", "fuse_galu"]', RecipeError, "unknown pass 'fuse_galu'"),
    ],
)
def test_what_a_toml_gets_wrong_is_said(tmp_path, text, error, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        Recipe.read(path)


def test_a_missing_toml_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot read the recipe"):
        Recipe.read(tmp_path / "none.toml")
