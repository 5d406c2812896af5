import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from maskocr_core import config
from maskocr_core.config import Config, Section
from maskocr_core.recipes import RECIPES

SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if name != "recipe"}


def refusal(*overrides: str, recipe: str = "smoke") -> str:
    with pytest.raises(ValueError) as caught:
        config.load(recipe, overrides)
    assert not isinstance(caught.value, ValidationError)
    return str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads_under_its_own_name(recipe):
    assert config.load(recipe).recipe == recipe


def test_an_unknown_recipe_is_answered_with_the_nearest_and_all_known():
    assert "unknown recipe 'pilto', did you mean 'pilot'" in refusal(recipe="pilto")
    assert all(name in refusal(recipe="pilto") for name in RECIPES)
    assert "did you mean 'paper-19m'" in refusal(recipe="paper-19")


def test_an_unknown_section_is_answered_with_the_nearest_and_all_known():
    message = refusal("pretrian.steps=1")
    assert "did you mean 'pretrain'" in message and all(name in message for name in SECTIONS)


def test_an_unknown_field_is_answered_with_the_nearest_and_all_known():
    message = refusal("pretrain.step=1")
    assert "did you mean 'steps'" in message and all(name in message for name in config.Training.model_fields)


def test_a_name_like_no_other_is_refused_without_a_guess():
    assert "did you mean" not in refusal("pretrain.zzzzzzzz=1")


@pytest.mark.parametrize("override", ["pretrain.steps", "steps=5", "=5", "", "recipe=pilot"])
def test_an_override_of_another_form_is_shown_the_right_one(override):
    assert f"override {override!r} is not of the form section.field=value" in refusal(override)


@pytest.mark.parametrize(
    ("override", "field", "given"),
    [
        ("pretrain.steps=0", "pretrain.steps", "0"),
        ("pretrain.steps=many", "pretrain.steps", "'many'"),
        ("pretrain.steps=1.5", "pretrain.steps", "1.5"),
        ("pretrain.learning_rate=0", "pretrain.learning_rate", "0"),
        ("pretrain.learning_rate=NaN", "pretrain.learning_rate", "nan"),
        ("mask.end=1.1", "mask.end", "1.1"),
        ("data.height=41", "data.height", "41"),
        ("data.columns=page", "data.columns", "'page'"),
        ("data.split_unit=line", "data.split_unit", "'line'"),
        ("sweep.starts=scratch", "sweep.starts", "'scratch'"),
        ('sweep.starts=["scratch","blank"]', "sweep.starts", "'blank'"),
        ("sweep.validations=6", "sweep.validations", "6"),
        ("sweep.decoder=transducer", "sweep.decoder", "'transducer'"),
        ("sweep.layer_decay=0", "sweep.layer_decay", "0"),
        ("sweep.layer_decay=1.5", "sweep.layer_decay", "1.5"),
        ("sweep.frozen=1.1", "sweep.frozen", "1.1"),
        ("sweep.frozen=-0.1", "sweep.frozen", "-0.1"),
        ("gate.confidence=95", "gate.confidence", "95"),
        ("pretrain.seed=-1", "pretrain.seed", "-1"),
        ("codebook.seed=4294967296", "codebook.seed", "4294967296"),
        ("sweep.seeds=[0, -2]", "sweep.seeds", "-2"),
    ],
)
def test_a_value_that_cannot_be_names_its_field_and_what_was_given(override, field, given):
    message = refusal(override)
    assert message.startswith(field) and f"(given: {given})" in message


def test_two_fields_that_do_not_go_together_are_both_named():
    assert "model.width=104" in refusal("model.width=104", "model.heads=3")
    assert "model.heads=3" in refusal("model.width=104", "model.heads=3")
    assert "codebook.components=600" in refusal("codebook.components=600", "codebook.features=pixels")
    assert "the 27 numbers that codebook.features=gradients" in refusal("data.height=24", "codebook.components=32")


def test_overrides_are_json_or_plain_text_and_the_last_one_wins():
    loaded = config.load(
        "smoke",
        [
            "pretrain.steps=7",
            "pretrain.steps=9",
            "sweep.budgets=[10, 20]",
            'data.columns={"page_id": "seite"}',
            "registry.model=my=model",
            'registry.experiment="quoted"',
            "model.stem=linear",
        ],
    )
    assert loaded.pretrain.steps == 9
    assert loaded.sweep.budgets == (10, 20)
    assert loaded.data.columns == {"page_id": "seite"}
    assert loaded.registry.model == "my=model" and loaded.registry.experiment == "quoted"
    assert loaded.model.stem == "linear"


def test_an_override_changes_nothing_but_its_field():
    before, after = config.load("smoke"), config.load("smoke", ["mask.span=3"])
    assert after.mask == before.mask.model_copy(update={"span": 3})
    assert all(getattr(after, name) == getattr(before, name) for name in SECTIONS if name != "mask")


def test_a_config_is_frozen_and_takes_no_strange_field():
    loaded = config.load("smoke")
    with pytest.raises(ValidationError, match="frozen"):
        loaded.pretrain.steps = 5
    with pytest.raises(ValidationError, match="frozen"):
        loaded.mask = config.Mask()
    with pytest.raises(ValidationError, match="Extra inputs"):
        config.Mask(probability=0.5)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_field_says_what_it_is(name):
    assert issubclass(SECTIONS[name], Section)
    undescribed = [field for field, about in SECTIONS[name].model_fields.items() if not about.description]
    assert not undescribed


def test_a_digest_depends_on_its_sections_alone_and_not_on_their_order():
    before, after = config.load("smoke"), config.load("smoke", ["pretrain.steps=9"])
    assert before.digest(("data", "mask")) == after.digest(("mask", "data"))
    assert before.digest(("data", "pretrain")) != after.digest(("data", "pretrain"))
    assert before.digest(("data",)) != before.digest(("mask",))


def test_a_digest_does_not_know_how_many_work_on_a_result():
    few, many = config.load("smoke"), config.load("smoke", ["pretrain.workers=2", "sweep.jobs=7"])
    assert few != many and few.digest(tuple(SECTIONS)) == many.digest(tuple(SECTIONS))


def test_a_digest_does_not_know_the_name_of_the_recipe():
    smoke = config.load("smoke")
    assert smoke.digest(tuple(SECTIONS)) == smoke.model_copy(update={"recipe": "mine"}).digest(tuple(SECTIONS))


@given(st.text(max_size=40))
def test_any_text_is_a_config_or_a_value_error(text):
    try:
        assert isinstance(config.load("smoke", [f"registry.model={text}"]), Config)
        config.load("smoke", [text])
    except ValueError as error:
        assert not isinstance(error, ValidationError)
