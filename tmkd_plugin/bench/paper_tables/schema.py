"""What a file of ``presets/tables`` may say: a table of the paper, or the scales at which tables can be run."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Metric = Literal["top1", "top5", "recall"]
TEACHER_ARM, STUDENT_ARM = "teacher", "student"


class Strict(BaseModel):
    """A mapping in which an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    suggestion = f" Did you mean '{near[0]}'?" if near else ""
                    raise ValueError(f"unknown key '{key}'.{suggestion} Known: {', '.join(cls.model_fields)}")
        return values


class Group(Strict):
    """A data set and a pair of networks; all its cells share one teacher.

    Attributes:
        name: How rows and columns refer to it.
        dataset: The data set's name here.
        teacher: The teacher's name in the zoo; a scale may put another network in its place.
        student: The student's.
        ours: What of these the paper does not state and we chose; ``None`` if it states all.
    """

    name: str
    dataset: str
    teacher: str
    student: str
    ours: str | None = None


class Line(Strict):
    """A row or a column. Of group, arm and metric it gives what the other axis leaves open.

    Attributes:
        id: How notes refer to it.
        labels: What the table prints, one text for each level of the header.
        group: The group of its cells.
        arm: Their arm: ``teacher``, ``student`` (trained with cross-entropy alone), ``kd``, ``kd+tmkd``, ``kd+tmkd@variant``.
        metric: What is shown of the test split.
        against: The arm from which the difference is taken.
        ours: Whether the paper's table lacks this line.
        paper: The paper's figures in percent, rows only, one for each column that the paper has.
    """

    id: str
    labels: tuple[str, ...] = Field(min_length=1)
    group: str | None = None
    arm: str | None = None
    metric: Metric | None = None
    against: str | None = None
    ours: bool = False
    paper: tuple[float | None, ...] | None = None


class Note(Strict):
    """What a reader of some cells should know.

    Attributes:
        text: One or two sentences.
        rows: Ids of rows; empty for all.
        columns: Ids of columns; empty for all.
    """

    text: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class TableSpec(Strict):
    """One table.

    Attributes:
        table: Its number in the paper.
        title: One line.
        source: Where the paper's figures were read.
        row_headers: What the levels of the row labels are called.
        column_headers: What the levels of the column labels are called.
        group: The group of all cells, where neither axis gives one.
        metric: The same for the metric.
        groups: All groups.
        variants: Settings of TMKD by the name that follows ``@`` in an arm.
        rows: In order.
        columns: In order.
        notes: In order.
    """

    table: int
    title: str
    source: str
    row_headers: tuple[str, ...] = Field(min_length=1)
    column_headers: tuple[str, ...] = Field(min_length=1)
    group: str | None = None
    metric: Metric = "top1"
    groups: tuple[Group, ...] = Field(min_length=1)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    rows: tuple[Line, ...] = Field(min_length=1)
    columns: tuple[Line, ...] = Field(min_length=1)
    notes: tuple[Note, ...] = ()


class DatasetFacts(Strict):
    """A data set's name in tables and the sizes of its official split, for estimates before it is on disk."""

    title: str
    classes: int = Field(ge=1)
    train: int = Field(ge=1)
    validation: int = Field(default=0, ge=0)
    test: int = Field(ge=1)
    image_size: int = Field(ge=8)


class ScaleSpec(Strict):
    """How large the experiments are.

    Attributes:
        title: One line that says what this scale is.
        faithful: Whether figures at this scale may be held against the paper's.
        preset: The preset with the recipe.
        download: Whether data sets and weights may be downloaded.
        substitute: The data set in place of any that is not on disk; ``None``: such a group fails.
        settings: Values for every group, over the preset.
        substituted: Values for groups whose data set is substituted, over all others.
        datasets: Values by data set, over those of ``settings``.
        teachers: Values by the teacher's name in the table; the key ``teacher`` puts another network in its place.
        students: The same for students.
    """

    title: str
    faithful: bool = True
    preset: str
    download: bool = True
    substitute: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    substituted: dict[str, Any] = Field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    students: dict[str, dict[str, Any]] = Field(default_factory=dict)


class ScalesFile(Strict):
    """The file ``scales.yaml``."""

    datasets: dict[str, DatasetFacts]
    scales: dict[str, ScaleSpec]
