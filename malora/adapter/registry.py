"""Makes the word ``MALORA`` known to PEFT, which has a closed list of its methods."""

from __future__ import annotations

from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method


def _extend_enum(name: str) -> PeftType:
    """Adds a member to the enum ``PeftType``.

    PEFT's own mappings would take a plain string, but transformers' ``load_adapter`` asks for ``.value``: only a real
    member works everywhere. ``register_peft_method`` in turn refuses a name that is not a member.
    """
    if name in PeftType._member_map_:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]  # as EnumType sets it
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


MALORA: PeftType = _extend_enum("MALORA")

# The peft_type in a saved adapter_config.json. Where ``malora`` was not imported this is the only text of the adapter that
# PEFT and transformers show (as a key that they do not know), so it says what to do. Never change it: saved adapters bear it.
SAVED_AS = "MALORA: not part of PEFT; install glotloom and run `import malora` before loading this adapter"


def register(config_class: type[Any], model_class: type[Any]) -> None:
    """Registers the tuner with PEFT; a second call does nothing."""
    PEFT_TYPE_TO_CONFIG_MAPPING[SAVED_AS] = config_class  # type: ignore[index]  # where loaders look a saved peft_type up
    if MALORA not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name="malora", config_cls=config_class, model_cls=model_class, prefix="malora_")
