import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dialogues.gates import MIN_GROUNDED_SHARE
from pipeline.errors import InputError
from pipeline.recipe import Dialogues, Recipe, load_recipe, parse_recipe, recipe_to_json

MINIMAL = {"name": "mini", "languages": ["en"], "agnostic": {"math": {"path": "math.jsonl", "budget": {"en": "all"}}}}
KNOWLEDGE = {"fr": {"kind": "jsonl", "path": "fr.jsonl"}}
REVERSE = {"fr": [{"mode": "reverse"}]}
OPENAI = {"kind": "openai", "base_url": "http://127.0.0.1/v1", "model": "m"}
FRENCH = {"name": "fr", "languages": ["fr"], "knowledge": KNOWLEDGE, "dialogues": REVERSE}


def refusal(table: dict) -> str:
    with pytest.raises(InputError) as error:
        parse_recipe(table, name="my.toml")
    return str(error.value)


def test_name_languages_and_one_source_are_enough():
    recipe = parse_recipe(MINIMAL)

    assert (recipe.name, recipe.languages, recipe.clean.near_duplicate_threshold) == ("mini", ("en",), 0.8)


@pytest.mark.parametrize(
    ("table", "wrong", "right"),
    [
        (MINIMAL | {"langauges": ["en"]}, "langauges", "languages"),
        (MINIMAL | {"clean": {"near_duplicates_threshold": 0.9}}, "clean.near_duplicates_threshold", "near_duplicate_threshold"),
        (FRENCH | {"knowledge": {"fr": KNOWLEDGE["fr"] | {"segment_token": 9}}}, "knowledge.fr.segment_token", "segment_tokens"),
        (FRENCH | {"dialogues": {"fr": [{"mode": "reverse", "counts": 9}]}}, "dialogues.fr.0.counts", "count"),
        (MINIMAL | {"teachers": {"main": {"kind": "local", "modell": "m"}}}, "teachers.main.modell", "model"),
        (MINIMAL | {"agnostic": {"math": {"path": "p", "budgets": {}}}}, "agnostic.math.budgets", "budget"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_right_one(table, wrong, right):
    message = refusal(table)

    assert f"my.toml: {wrong}: unknown key; did you mean {right!r}?" in message


def test_an_unknown_key_like_no_other_is_refused_with_the_ones_there_are():
    assert "clean.zzz: unknown key; there are evaluation_sets" in refusal(MINIMAL | {"clean": {"zzz": 1}})


def test_a_misspelt_task_is_refused_with_the_tasks_there_are():
    message = refusal({"name": "x", "languages": ["en"], "agnostic": {"maths": {"path": "p", "budget": {}}}})

    assert "agnostic.maths" in message
    assert "'math'" in message


def test_an_unknown_language_is_refused_by_file_and_key_with_the_languages_there_are():
    message = refusal(MINIMAL | {"languages": ["en", "xx"]})

    assert message.startswith("my.toml: languages: ")
    assert "'xx'" in message
    assert "ar, de, en, es, fr, hi, ja, pt, ru, sw, uk, zh" in message


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (FRENCH | {"knowledge": {"fr": KNOWLEDGE["fr"] | {"min_tokens": 0}}}, "knowledge.fr.min_tokens = 0"),
        (FRENCH | {"knowledge": {"fr": KNOWLEDGE["fr"] | {"segment_tokens": -5}}}, "knowledge.fr.segment_tokens = -5"),
        (FRENCH | {"knowledge": {"fr": KNOWLEDGE["fr"] | {"max_documents": 2.5}}}, "knowledge.fr.max_documents = 2.5"),
        (FRENCH | {"knowledge": {"fr": KNOWLEDGE["fr"] | {"max_documents": True}}}, "knowledge.fr.max_documents = True"),
        (FRENCH | {"knowledge": {"fr": KNOWLEDGE["fr"] | {"min_tokens": 20_000}}}, "knowledge.fr.min_tokens = 20000"),
        (MINIMAL | {"clean": {"near_duplicate_threshold": 0}}, "clean.near_duplicate_threshold = 0"),
        (MINIMAL | {"clean": {"near_duplicate_threshold": 1.5}}, "clean.near_duplicate_threshold = 1.5"),
        (MINIMAL | {"clean": {"near_duplicate_threshold": math.nan}}, "clean.near_duplicate_threshold = nan"),
        (MINIMAL | {"seed": -1}, "seed = -1"),
        (MINIMAL | {"teachers": {"t": {"kind": "local", "timeout_s": 0}}}, "teachers.t.timeout_s = 0"),
        (MINIMAL | {"teachers": {"t": {"kind": "local", "timeout_s": math.inf}}}, "teachers.t.timeout_s = inf"),
        (MINIMAL | {"teachers": {"t": {"kind": "local", "temperature": 3}}}, "teachers.t.temperature = 3"),
        (MINIMAL | {"agnostic": {"math": {"path": "p", "budget": {"en": -1}}}}, "agnostic.math.budget.en"),
    ],
)
def test_an_impossible_number_is_refused_by_its_key(table, key):
    message = refusal(table)

    assert message.startswith(f"my.toml: {key}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (MINIMAL | {"name": 3}, "name = 3"),
        (MINIMAL | {"name": "../up"}, "name = '../up'"),
        (MINIMAL | {"languages": "en"}, "languages = 'en'"),
        (MINIMAL | {"languages": []}, "languages = []"),
        (MINIMAL | {"knowledge": []}, "knowledge = []"),
        (FRENCH | {"dialogues": {"fr": {"mode": "reverse"}}}, "dialogues.fr = {'mode': 'reverse'}"),
        (FRENCH | {"dialogues": {"fr": [{"mode": "backwards"}]}}, "dialogues.fr.0.mode = 'backwards'"),
        (FRENCH | {"knowledge": {"fr": {"kind": "pdf", "path": "x"}}}, "knowledge.fr.kind = 'pdf'"),
        (FRENCH | {"knowledge": {"fr": {"kind": "jsonl", "path": 4}}}, "knowledge.fr.path = 4"),
        (MINIMAL | {"agnostic": {"math": {"path": "p", "budget": {"en": "some"}}}}, "agnostic.math.budget.en"),
        (MINIMAL | {"clean": {"evaluation_sets": "mgsm.tsv"}}, "clean.evaluation_sets = 'mgsm.tsv'"),
        (MINIMAL | {"seed": "7"}, "seed = '7'"),
    ],
)
def test_nonsense_is_refused_by_its_key_and_value(table, key):
    assert refusal(table).startswith(f"my.toml: {key}")


@pytest.mark.parametrize("key", ["name", "languages"])
def test_a_missing_key_is_named(key):
    assert refusal({k: v for k, v in MINIMAL.items() if k != key}) == f"my.toml: {key}: is missing"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (MINIMAL | {"languages": ["en", "en"]}, "languages = ['en', 'en']: a language stands there twice"),
        ({"name": "x", "languages": ["en"]}, "there is no source"),
        (FRENCH | {"dialogues": {}}, "knowledge.fr: nothing is made of it; add [[dialogues.fr]]"),
        (FRENCH | {"dialogues": {"fr": []}}, "knowledge.fr: nothing is made of it; add [[dialogues.fr]]"),
        (MINIMAL | {"dialogues": {"en": [{"mode": "reverse"}]}}, "dialogues.en: there is no [knowledge.en]"),
        (FRENCH | {"languages": ["en"]}, "knowledge.fr: 'fr' is not among languages"),
        (FRENCH | {"dialogues": {"fr": [{"mode": "grounded"}]}}, "dialogues.fr: mode 'grounded' needs a teacher"),
        (
            FRENCH | {"dialogues": {"fr": [{"mode": "grounded", "teacher": "main"}]}},
            "dialogues.fr.teacher = 'main': there is no [teachers.main]",
        ),
        (MINIMAL | {"teachers": {"main": {"kind": "openai"}}}, "teachers.main: an openai teacher needs base_url and model"),
        (
            MINIMAL | {"teachers": {"main": OPENAI | {"base_url": ["http://a/v1", "http://b/v1"], "max_concurrency": 1}}},
            "teachers.main.max_concurrency = 1: is less than one for each address",
        ),
        (
            MINIMAL | {"teachers": {"main": OPENAI | {"budget": 5.0}}},
            "teachers.main.budget: needs prompt_price and completion_price, of a million tokens",
        ),
        (
            MINIMAL | {"agnostic": {"math": {"path": "p", "budget": {"fr": 3}}}},
            "agnostic.math.budget.fr: 'fr' is not among languages",
        ),
    ],
)
def test_a_contradiction_is_refused_by_the_key_that_makes_it(table, problem):
    assert refusal(table).startswith(f"my.toml: {problem}")


def test_a_recipe_is_read_from_its_file_and_its_paths_start_at_its_folder(tmp_path):
    path = tmp_path / "mini.toml"
    path.write_text('name = "mini"\nlanguages = ["en"]\n[agnostic.math]\npath = "pool/math.jsonl"\nbudget = { en = 3 }\n')

    recipe = load_recipe(path)

    assert recipe.path(recipe.agnostic["math"].path) == tmp_path / "pool" / "math.jsonl"
    assert recipe.path("/data/x.jsonl") == Path("/data/x.jsonl")
    assert recipe.path("sample:agnostic/math.jsonl").is_file()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name = ", "not valid TOML"),
        (b"languages = [en]", "not valid TOML"),
        (b'name = "\xff"', "not valid TOML"),
        (b"", "is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content, problem):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)

    with pytest.raises(InputError, match=problem) as error:
        load_recipe(path)

    assert "bad.toml" in str(error.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.toml: No such file"):
        load_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("override", "seen"),
    [
        ("seed=11", lambda recipe: recipe.seed == 11),
        ("clean.near_duplicate_threshold=0.9", lambda recipe: recipe.clean.near_duplicate_threshold == 0.9),
        ("agnostic.math.budget.en=5", lambda recipe: recipe.agnostic["math"].budget == {"en": 5}),
        ("name=other", lambda recipe: recipe.name == "other"),
        ("training.r=8", lambda recipe: recipe.training["r"] == 8),
    ],
)
def test_an_override_replaces_or_adds_a_key(tmp_path, override, seen):
    path = tmp_path / "mini.toml"
    path.write_text('name = "mini"\nlanguages = ["en"]\n[agnostic.math]\npath = "m.jsonl"\nbudget = { en = 3 }\n')

    assert seen(load_recipe(path, [override]))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("languages.en=3", "--set languages.en=3: languages is a list or a value, not a table"),
        ("name.a.b=3", "--set name.a.b=3: name is a list or a value, not a table"),
        ("sede=3", "sede: unknown key; did you mean 'seed'?"),
    ],
)
def test_an_override_that_cannot_be_is_refused(tmp_path, override, problem):
    path = tmp_path / "mini.toml"
    path.write_text('name = "mini"\nlanguages = ["en"]\n[agnostic.math]\npath = "m.jsonl"\nbudget = { en = 3 }\n')

    with pytest.raises(InputError) as error:
        load_recipe(path, [override])

    assert problem in str(error.value)


def test_the_manifests_recipe_holds_every_default_and_no_folder_of_this_machine(tmp_path):
    table = recipe_to_json(parse_recipe(FRENCH, folder=tmp_path))

    assert table["knowledge"]["fr"]["min_tokens"] == 1000
    assert str(tmp_path) not in str(table)


def test_what_the_manifest_holds_is_a_recipe_again():
    recipe = parse_recipe(FRENCH | {"training": {"target_modules": ["q_proj", "v_proj"]}})

    assert parse_recipe(recipe_to_json(recipe)) == recipe


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
TABLES = st.recursive(SCALARS, lambda any_: st.lists(any_, max_size=3) | st.dictionaries(st.text(max_size=8), any_, max_size=3))
KEYS = st.sampled_from(
    ["name", "languages", "seed", "knowledge", "dialogues", "teachers", "agnostic", "clean", "training", "folder"]
)


@given(st.dictionaries(KEYS | st.text(max_size=8), TABLES, max_size=5))
def test_any_table_is_a_recipe_or_is_refused_in_one_line(changes):
    try:
        recipe = parse_recipe(MINIMAL | changes)
    except InputError as error:
        assert str(error).startswith("recipe: ")
    else:
        assert isinstance(recipe, Recipe)


def test_the_manifests_recipe_tells_nothing_of_this_machine_or_of_an_endpoint():
    teacher = OPENAI | {"base_url": "http://10.0.0.7/v1", "api_key_env": "SECRET_NAME"}
    table = FRENCH | {
        "knowledge": {"fr": {"kind": "text", "path": "/home/alice/secret/texts"}},
        "teachers": {"main": teacher},
        "clean": {"evaluation_sets": ["/home/alice/eval.tsv"]},
        "training": {"base_model": "/home/alice/models/base"},
    }
    told = str(recipe_to_json(parse_recipe(table)))

    assert "texts" in told and "eval.tsv" in told and "base" in told
    assert not any(secret in told for secret in ("alice", "10.0.0.7", "SECRET_NAME"))


def test_how_a_teacher_is_driven_is_not_in_the_manifest():
    driven = {"max_concurrency": 7, "timeout_s": 7.0, "requests_per_minute": 7, "tokens_per_minute": 7}
    paid = {"prompt_price": 0.7, "completion_price": 0.7, "budget": 7.0}
    plain, other = (parse_recipe(MINIMAL | {"teachers": {"main": OPENAI | more}}) for more in ({}, driven | paid))

    assert recipe_to_json(plain) == recipe_to_json(other)


def test_the_grounded_share_of_a_recipe_is_the_gates_own_unless_it_is_given():
    assert Dialogues(mode="grounded").min_grounded == MIN_GROUNDED_SHARE


def test_a_teacher_has_one_address_or_several():
    with pytest.raises(
        InputError, match=r"teachers\.main\.base_url = 'localhost:8000': should be an address, http://…, or a list of them$"
    ):
        parse_recipe(MINIMAL | {"teachers": {"main": OPENAI | {"base_url": "localhost:8000"}}})

    def addresses(base_url):
        return parse_recipe(MINIMAL | {"teachers": {"main": OPENAI | {"base_url": base_url}}}).teachers["main"].base_urls

    assert addresses("http://a/v1/") == ("http://a/v1",)
    assert addresses(["http://a/v1", "http://b/v1", "http://a/v1/"]) == ("http://a/v1", "http://b/v1")


def test_a_teachers_name_cannot_lead_out_of_the_work_folder():
    with pytest.raises(InputError, match="teachers"):
        parse_recipe(FRENCH | {"teachers": {"../../up": {"kind": "local"}}})


def test_a_key_where_the_name_of_a_variable_belongs_is_never_shown():
    teacher = {"kind": "openai", "base_url": "http://127.0.0.1/v1", "model": "m", "api_key_env": "sk-secret-secret"}
    with pytest.raises(InputError, match="the name of an environment variable") as error:
        parse_recipe(FRENCH | {"teachers": {"main": teacher}})
    assert "secret-secret" not in str(error.value)
