"""What every section of the manifest is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A frozen part of the manifest that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
