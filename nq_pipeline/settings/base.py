"""What every group of settings is made of: how a setting is declared, named, parsed and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that plain http may be sent to."""


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Usd = Annotated[Decimal, Field(ge=0, lt=10**9, decimal_places=9)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]


def setting(
    default: Any,
    *,
    description: str,
    name: str = "",
    variables: tuple[str, ...] = (),
    sandbox: Any = None,
    shapes_chain: bool = True,
    **limits: Any,
) -> Any:
    """Declare a setting.

    Parameters
    ----------
    name
        Its variable without `NQ_`, in lower case, where that is not the group's prefix plus the field's name.
    variables
        Variables of the vendor's own that set it, too. These are the documented ones.
    sandbox
        The default in the sandbox where it differs.
    shapes_chain
        For a vendor's setting: whether a chain depends on it, so that it is part of the cache's key.
    limits
        As `pydantic.Field` takes them.
    """
    extra = {"name": name, "variables": variables, "sandbox": sandbox, "shapes_chain": shapes_chain}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Declared(NamedTuple):
    """A setting as its group declares it.

    Attributes
    ----------
    name
        Unique among all settings: the variable without `NQ_`, in lower case.
    variables
        Variables that set it, the documented ones first.
    documented
        Those of them that the reference names.
    """

    name: str
    attribute: str
    variables: tuple[str, ...]
    documented: tuple[str, ...]
    field: FieldInfo
    sandbox: Any
    shapes_chain: bool


class SettingsGroup(BaseModel):
    """The settings of one concern."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    prefix: ClassVar[str] = ""

    @classmethod
    def declared(cls) -> Iterator[Declared]:
        """Every setting of the group."""
        for attribute, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if not isinstance(extra, Mapping):  # a group, not a setting
                continue
            name = str(extra["name"] or f"{cls.prefix}{attribute}")
            theirs: tuple[str, ...] = tuple(extra["variables"])  # type: ignore[arg-type]
            variables = (*theirs, f"NQ_{name.upper()}")
            yield Declared(
                name,
                attribute,
                variables,
                theirs or variables,
                field,
                extra["sandbox"],
                bool(extra["shapes_chain"]),
            )

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A validated copy with other values, by attribute; what was set explicitly stays so."""
        return self.model_validate(
            {**{name: getattr(self, name) for name in self.model_fields_set}, **values}
        )

    def secret_texts(self) -> Iterator[str]:
        """Everything of the group that no text may hold, a password within a URL by itself, too."""
        for one in self.declared():
            value = getattr(self, one.attribute)
            if isinstance(value, SecretStr):
                text = value.get_secret_value()
                yield text
                if password := re.match(r"[^/]*//[^/@]*:([^/]+)@", text):
                    yield password[1]


class VendorSettings(SettingsGroup):
    """The settings of one vendor; the subclass is in the vendor's package."""

    def shaping(self) -> dict[str, Any]:
        """The values by name that a chain depends on, as JSON has them; no secrets."""
        values = self.model_dump(mode="json")
        return {
            one.name: values[one.attribute]
            for one in self.declared()
            if one.shapes_chain and not isinstance(getattr(self, one.attribute), SecretStr)
        }


def bare_url(value: str, *, plain: str = "http") -> str:
    """An address with nothing secret in it; a key travels unencrypted only inside this machine.

    Parameters
    ----------
    plain
        The scheme without encryption, `http` or `ws`.
    """
    secure = f"{plain}s"
    form = f"write an address like {secure}://host/path"
    try:
        parts = urlsplit(value)
        known = parts.scheme in (plain, secure) and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        raise ValueError(form) from None
    if not known:
        raise ValueError(form)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{form}, without user, password, query or fragment: it is written to tables")
    if parts.scheme == plain and parts.hostname not in LOOPBACK:
        raise ValueError(f"{plain}:// is for this machine only, since keys travel with it; use {secure}://")
    return value.rstrip("/")
