"""How a setting is declared, named, parsed and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache, partial
from typing import Annotated, Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that plain http may be sent to."""


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Usd = Annotated[Decimal, Field(ge=0, lt=10**9, decimal_places=9)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]


def bare_url(value: str, *, plain: str = "http") -> str:
    """The address without a final slash; `plain` is the scheme without encryption, `http` or `ws`.

    Raises `ValueError` when it is not an address, may hold a secret (user, query, fragment), or would send
    a key unencrypted to another machine.
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


Url = Annotated[str, AfterValidator(bare_url)]
WebsocketUrl = Annotated[str, AfterValidator(partial(bare_url, plain="ws"))]


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
        The variable without `NQ_`, in lower case. By default the group's prefix and the field's name.
    variables
        Names the vendor itself uses for the variable. They work as well, and the reference shows only them.
    sandbox
        The default in the sandbox; None when it is the same.
    shapes_chain
        Whether a vendor's chain depends on the setting, so that it is part of the key of cached answers.
    limits
        Constraints of `pydantic.Field`, such as `ge`.
    """
    extra = {"name": name, "variables": variables, "sandbox": sandbox, "shapes_chain": shapes_chain}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Declared(NamedTuple):
    """A setting as its group declares it; `variables` set it, and the reference shows those `documented`.

    `name` is unique among all settings: the variable without `NQ_`, in lower case.
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
    @cache
    def declared(cls) -> tuple[Declared, ...]:
        """Every setting of the group."""
        settings = list[Declared]()
        for attribute, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if not isinstance(extra, Mapping):  # a group, not a setting
                continue
            name = str(extra["name"] or f"{cls.prefix}{attribute}")
            theirs: tuple[str, ...] = tuple(extra["variables"])  # type: ignore[arg-type]
            variables = (*theirs, f"NQ_{name.upper()}")
            shapes_chain = bool(extra["shapes_chain"])
            settings.append(
                Declared(
                    name, attribute, variables, theirs or variables, field, extra["sandbox"], shapes_chain
                )
            )
        return tuple(settings)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A validated copy with other values, by attribute; explicitly set values stay explicit."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.model_validate({**given, **values})

    def secret_texts(self) -> Iterator[str]:
        """Every secret of the group. A URL with a password yields both the URL and the password."""
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
        """The settings that a chain depends on, as JSON values by name, without secrets."""
        values = self.model_dump(mode="json")
        return {
            one.name: values[one.attribute]
            for one in self.declared()
            if one.shapes_chain and not isinstance(getattr(self, one.attribute), SecretStr)
        }
