"""Shared by the tests of sources: read everything, records and refusals apart."""

from lgjax.data.masks import clean
from lgjax.data.schema import Record, RecordError, Source, check


def outcomes(source: Source) -> tuple[dict[int, Record], dict[int, str]]:
    """Records and messages of refused ones by index; every record must stay sound when it is cleaned."""
    records, refused = {}, {}
    for index in range(len(source)):
        try:
            records[index] = source[index]
        except RecordError as error:
            refused[index] = str(error)
        else:
            check(records[index])
            clean(records[index])
    return records, refused


def words(record: Record) -> list[tuple[str, list]]:
    """Each phrase as text, with the ids of its objects."""
    return [
        (record.turns[p.turn].text[slice(*p.span)], [record.objects[i].id for i in p.objects])
        for p in record.phrases
    ]
