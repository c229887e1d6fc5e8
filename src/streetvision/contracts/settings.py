"""What settings have in common, whichever floor reads them."""

from typing import Annotated

from pydantic import BaseModel, Field, JsonValue

RESULT_NEUTRAL = "no matter to the result"
"""Annotates a setting that decides how something is made and not what: changing it leaves what is made as it is."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""What every generator of numpy and torch takes, with room for those that are counted on from it."""


def result_affecting(section: BaseModel) -> dict[str, JsonValue]:
    """The settings of a section that decide a result, for a digest: all but its own that are annotated NO_MATTER."""
    how = {name for name, field in type(section).model_fields.items() if RESULT_NEUTRAL in field.metadata}
    return section.model_dump(mode="json", exclude=how)
