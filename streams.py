"""Batches from shards, which are read from their beginning to their end.

A process that loads views (a *reader*) has shards of its own in each pass over the data. It reads
`buffer` views at a time, and gives them out in random order. This order depends only on the
seed, the shards and the number of readers, so a resumed run goes on with the same views.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets import Reality, TaskDataset, TrainTaskDataset, collate
from loading.bad_files import BadView, first_good
from loading.shards import SHARDED, Content, Name, Shards
from loading.view_sequence import Views
from loading.workers import prepare_worker
from utils import UserError, log

BUFFER = 1000  # views that are shuffled together


def is_sharded(dataset: TaskDataset) -> bool:
    """Whether the views of a data set are in shards.

    Raises UserError if only some of them are.
    """
    some = dataset.views.firsts() if isinstance(dataset.views, Views) else dataset.views
    kinds = {view.layout == SHARDED for view in some}
    if len(kinds) > 1:
        raise UserError("`data_dirs` names shards and other data: train on one of them")
    return kinds == {True}


class Stream(IterableDataset):
    """Batches of a data set in shards, as a DataLoader's processes make them.

    If `endless`, the shards are dealt anew to the readers in each pass, in random order, and each
    reader gives out every view of its shards once. Otherwise the views come once, in the order of
    the shards, and each of the `count` ranks keeps its share of the batches. The first `start`
    batches of this rank are skipped.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        batch_size: int,
        endless: bool,
        seed: int = 0,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.dataset, self.batch_size, self.endless = dataset, batch_size, endless
        self.seed, self.rank, self.count = seed, rank, count
        self.start, self.buffer = 0, BUFFER
        wanted = defaultdict[tuple[int, int], dict[Name, int]](dict)
        sources: list[Shards] = []
        for number, view in enumerate(dataset.views):
            name, source = (view.part, view.building, view.name), dataset.shards_of(view)
            if source not in sources:
                sources.append(source)
            wanted[sources.index(source), source.where(name)[0]][name] = number
        # the shards, and in each the views that are wanted, with their numbers
        self.shards = [(sources[i], shard, wanted[i, shard]) for i, shard in sorted(wanted)]

    def __iter__(self) -> Iterator:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if not self.endless:
            return self._once()
        # The loader takes the batches of its processes in turn, beginning with the first.
        own = (worker + self.start) % workers
        done = len(range(own, self.start, workers)) * self.batch_size
        return self._batches(self._drawn(self.rank * workers + own, self.count * workers, done))

    def _batches(self, samples: Iterator) -> Iterator:
        while batch := list(islice(samples, self.batch_size)):
            yield collate(batch)

    def _once(self) -> Iterator:
        """Yield this rank's batches of one pass in order."""
        samples = (
            item for source, shard, wanted in self.shards for item in source.read(shard, wanted)
        )
        for number, batch in enumerate(iter(lambda: list(islice(samples, self.batch_size)), [])):
            if number % self.count == self.rank:
                yield collate([self._sample(*item) for item in batch])

    def _sample(self, number: int, files: Content) -> tuple:
        try:
            return self.dataset.decoded(self.dataset.views[number], files), number, []
        except BadView as error:
            return None, number, [(number, error.files)]

    # ---- training --------------------------------------------------------------------------

    def dealt(self, turn: int, reader: int, readers: int) -> list[int]:
        """Return the numbers of a reader's shards in a pass, in their order."""
        order = list(range(len(self.shards)))
        random.Random(f"{self.seed}/{turn}").shuffle(order)
        return order[reader::readers]

    def _drawn(self, reader: int, readers: int, done: int) -> Iterator:
        """Yield a reader's samples without end, after the first `done` of them."""
        turn = 0
        while True:
            own = self.dealt(turn, reader, readers)
            size = sum(len(self.shards[shard][2]) for shard in own)
            if done < size:
                yield from self._pass(turn, reader, own, done)
            done, turn = max(0, done - size), turn + 1

    def _pass(self, turn: int, reader: int, own: list[int], done: int) -> Iterator:
        """Yield the samples of a pass after the first `done`."""
        first = done // self.buffer
        views = self._unread(own, first * self.buffer)
        chunks = iter(lambda: list(islice(views, self.buffer)), [])
        for number, chunk in enumerate(chunks, first):
            random.Random(f"{self.seed}/{turn}/{reader}/{number}").shuffle(chunk)
            for position in range(done - first * self.buffer if number == first else 0, len(chunk)):
                yield self._good(turn, chunk, position)

    def _unread(self, own: list[int], skipped: int) -> Iterator:
        """Yield the views of shards, without those that were read before; whole shards of these
        are not opened."""
        for shard in own:
            source, number, wanted = self.shards[shard]
            if skipped >= len(wanted):
                skipped -= len(wanted)
                continue
            yield from islice(source.read(number, wanted), skipped, None)
            skipped = 0

    def _good(self, turn: int, chunk: list, position: int) -> tuple:
        """Return a sample. A view that cannot be loaded is replaced by the next of its chunk."""
        data = self.dataset

        def load(place: int):
            number, files = chunk[place]
            if not isinstance(data, TrainTaskDataset):
                return data.decoded(data.views[number], files), number
            draw = turn * len(data) + number
            tensors = data.decoded(data.views[number], files, *data.augmentation(draw))
            return data.with_look(draw, tensors), number

        (tensors, number), bad = first_good(load, position, len(chunk))
        return tensors, number, [(chunk[place][0], files) for place, files in bad]


class ShardReality(Reality):
    """A Reality whose views are in shards. `begin` skips batches, as for other data.

    Raises UserError if there are fewer shards of training views than processes.
    """

    def _batches(self, seed: int, rank: int, count: int) -> Stream:
        return Stream(self.dataset, self.batch_size, self.endless, seed, rank, count)

    def _loader(self, num_workers: int, count: int) -> DataLoader:
        shards = len(self.batches.shards)
        if self.endless and shards < count:
            raise UserError(
                f"{shards} shards of {self.name} views are too few for {count} processes: each "
                f"reads shards of its own (write smaller ones with `shard_size`)"
            )
        most = shards // count if self.endless else 1  # in order, one process reads them all
        if num_workers > most and self.endless:
            log.info(
                "%s loading processes, as there are %s shards of %s views", most, shards, self.name
            )
        return DataLoader(
            self.batches,
            batch_size=None,
            num_workers=min(num_workers, most),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=prepare_worker,
        )
