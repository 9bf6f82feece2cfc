"""Numbered notes below a table, and which cells they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tmkd_plugin.bench.paper_tables.messages import counted, shortened
from tmkd_plugin.bench.paper_tables.other_data import OtherData
from tmkd_plugin.bench.paper_tables.outcome import GroupOutcome
from tmkd_plugin.bench.paper_tables.planning import PlannedGroup, arms_of
from tmkd_plugin.bench.paper_tables.schema import Line, TableSpec

MORE = 3


@dataclass
class Notes:
    """The notes of a table.

    Attributes:
        texts: In the order of their numbers, which start at 1.
        of_cell: Their numbers by (row id, column id).
        of_line: Their numbers by the id of a row or a column as a whole.
    """

    texts: list[str] = field(default_factory=list)
    of_cell: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    of_line: dict[str, list[int]] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Returns the number of a text, which is added if it is new."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def add_cell(self, row: str, column: str, text: str) -> None:
        """Puts a note to a cell."""
        _add(self.of_cell.setdefault((row, column), []), self.number(text))

    def numbers(self, row: str, column: str) -> list[int]:
        """Returns the numbers of all notes that concern a cell, ascending."""
        of_lines = {*self.of_line.get(row, ()), *self.of_line.get(column, ())}
        return sorted(of_lines | {*self.of_cell.get((row, column), ())})

    def add_line(self, line: str, text: str) -> None:
        """Puts a note to a row or a column."""
        _add(self.of_line.setdefault(line, []), self.number(text))


def notes_of(table: TableSpec, others: Mapping[str, OtherData], outcomes: Mapping[str, GroupOutcome]) -> Notes:
    """Collects what is to be said: other data first, then failures, our choices, and the paper's contradictions.

    Args:
        table: The table.
        others: By group, how its data differ from the paper's.
        outcomes: What each group came to.
    """
    notes = Notes()
    for name, other in others.items():
        _add_to_group(notes, table, name, f"Not the paper's data: {shortened(other.note)}.")
    for name, outcome in outcomes.items():
        for problem in outcome.problems:
            _add_to_group(notes, table, name, f"Failed: {shortened(problem)}")
    for row in table.rows:
        for column in table.columns:
            _add_failures(notes, table, row, column, outcomes)
    for group in table.groups:
        if group.ours is not None:
            _add_to_group(notes, table, group.name, group.ours)
    for note in table.notes:
        rows = [row for row in table.rows if row.id in note.rows or not note.rows]
        columns = [column for column in table.columns if column.id in note.columns or not note.columns]
        for row in rows:
            for column in columns:
                notes.add_cell(row.id, column.id, note.text)
    return notes


def _add_failures(
    notes: Notes, table: TableSpec, row: Line, column: Line, outcomes: Mapping[str, GroupOutcome]
) -> None:
    group, arm = str(row.group or column.group or table.group), str(row.arm or column.arm)
    errors = outcomes[group].errors(arm)
    if errors:
        more = f" (and {len(errors) - MORE} more)" if len(errors) > MORE else ""
        notes.add_cell(row.id, column.id, f"Failed: {'; '.join(map(shortened, errors[:MORE]))}{more}")


def _add_to_group(notes: Notes, table: TableSpec, group: str, text: str) -> None:
    """Puts a note to the rows or columns of a group; to every row where the whole table is one group."""
    lines = [line for line in (*table.rows, *table.columns) if line.group == group]
    for line in lines or table.columns:
        notes.add_line(line.id, text)


def _add(numbers: list[int], number: int) -> None:
    if number not in numbers:
        numbers.append(number)


def group_lines(
    table: TableSpec,
    groups: Mapping[str, PlannedGroup],
    outcomes: Mapping[str, GroupOutcome],
    titles: Mapping[str, str],
) -> Iterator[str]:
    """Says for each group what was run: data, networks, recipes, the teacher's accuracy."""
    for name, planned in groups.items():
        configuration = planned.comparisons[0].configuration
        experiment, training = configuration.experiment, configuration.recipe("training")
        networks = f"{_network(experiment.teacher, experiment.teacher_pretrained)} -> " + _network(
            experiment.student, experiment.student_pretrained
        )
        parts = [networks, _data(planned, outcomes[name], titles)]
        epochs = counted(training.epochs, "epoch")
        parts.append(f"{epochs} of SGD at {training.learning_rate:g}, batch {training.batch_size}")
        parts.append(counted(len(planned.seeds), "seed"))
        if any(arm.enhanced for arm in arms_of(table, planned.group)):
            parts.append(f"text {experiment.text}")
        teacher = outcomes[name].values("teacher", "top1")
        parts += [f"teacher's top-1 {top1:.2f}" for top1 in teacher.values()]
        yield f"{name}: {'; '.join(parts)}."


def _network(name: str, pretrained: bool) -> str:
    return f"{name} (from ImageNet weights)" if pretrained else name


def _data(planned: PlannedGroup, outcome: GroupOutcome, titles: Mapping[str, str]) -> str:
    title = titles.get(planned.dataset, planned.dataset)
    if not outcome.results:
        return title
    data = outcome.results[0]["dataset"]
    sizes = "/".join(f"{data[split]:,}" for split in ("train", "validation", "test"))
    return f"{title}, {len(data['class_names'])} classes, {sizes} training/validation/test images of {data['image_size']} px"
