"""The nearest rows are found, whatever the order, the layout or the number of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import neighbours
from job.neighbours import ZEROS, nearest


def rows(n: int, *, width: int = 24, seed: int = 0, centres: int = 20) -> np.ndarray:
    """Draw rows around centres, in few strong directions and many weak ones, as embeddings are."""
    random = np.random.default_rng(seed)
    middle = random.gamma(0.5, size=(centres, width))
    drawn = middle[random.integers(0, centres, n)] + 0.5 * random.normal(size=(n, width))
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(width, width)))[0]
    return ((drawn / np.arange(1, width + 1) ** 0.7) @ turn).astype(np.float32)


def cosines(features: np.ndarray) -> np.ndarray:
    """Give the similarity of every two rows in float64; a row and itself have -2."""
    wide = features.astype(np.float64)
    centred = wide - wide.sum(axis=0) / (len(wide) + ZEROS)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    similar = units @ units.T
    np.fill_diagonal(similar, -2)
    return similar


@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_few_rows_are_compared_exactly(n: int, k: int, seed: int) -> None:
    """The similarities are the k largest of each row, in falling order, and belong to the indices.

    No row is its own neighbour, and no row is named twice.
    """
    features = rows(n, seed=seed)
    indices, similarities = nearest(features, k)
    assert indices.shape == similarities.shape == (n, min(k, n - 1))
    assert (indices.dtype, similarities.dtype) == (np.int64, np.float32)
    expected = cosines(features)
    assert np.abs(-np.sort(-expected, axis=1)[:, : min(k, n - 1)] - similarities).max() < 1e-5
    named = np.take_along_axis(expected, indices, 1)
    assert np.abs(named - similarities).max() < 1e-5
    assert all(len({*line}) == len(line) for line in indices.tolist())


@given(st.permutations(range(30)))
@settings(deadline=None, max_examples=30)
def test_rows_in_another_order_have_the_same_neighbours(order: list[int]) -> None:
    """Permuting the rows permutes the indices."""
    features = rows(30)
    straight, _ = nearest(features, 5)
    moved, _ = nearest(features[order], 5)
    assert (np.array(order)[moved] == straight[order]).all()


def test_similarity_is_symmetric() -> None:
    """Where two rows name each other they say the same similarity, to the bit."""
    features = rows(200)
    indices, similarities = nearest(features, 5)
    said = {
        (row, int(other)): float(similarity)
        for row in range(200)
        for other, similarity in zip(indices[row], similarities[row], strict=True)
    }
    both = [pair for pair in said if pair[::-1] in said]
    assert len(both) > 200
    assert all(said[pair] == said[pair[::-1]] for pair in both)


def test_copies_are_nearest_and_in_the_order_of_their_rows() -> None:
    """Rows with the same features have similarity 1 and name each other, never themselves."""
    features = np.repeat(rows(5), 4, axis=0)
    indices, similarities = nearest(features, 3)
    assert indices[4:8].tolist() == [[5, 6, 7], [4, 6, 7], [4, 5, 7], [4, 5, 6]]
    assert np.abs(similarities - 1).max() < 1e-5


@pytest.mark.parametrize("n", [0, 1])
def test_a_row_alone_has_no_neighbours(n: int) -> None:
    """There are as many columns as others."""
    indices, similarities = nearest(np.ones((n, 4), np.float32), 3)
    assert indices.shape == similarities.shape == (n, 0)


def test_two_copies_alone_are_alike() -> None:
    """Centring does not make opposites of the only two rows there are."""
    copies = rows(1) + np.array([[0.0], [0.01]], np.float32)
    assert nearest(copies, 1)[1].min() > 0.9


def test_a_row_that_is_the_mean_is_like_nothing() -> None:
    """It has no direction: its similarities are 0, and those of all others are numbers."""
    half = rows(10, width=6)
    features = np.concatenate([half, -half, np.zeros((1, 6), np.float32)])
    _, similarities = nearest(features, 4)
    assert (similarities[-1] == 0).all()
    assert np.isfinite(similarities).all()
    assert (similarities[:-1, 0] > 0).all()


class TestManyRows:
    """Above `EXACT_ROWS` there is an inverted file."""

    N = 5000

    @pytest.fixture(autouse=True)
    def _few_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(neighbours, "EXACT_ROWS", 1000)

    def test_nearly_all_that_is_similar_is_found(self) -> None:
        """Of the 5 nearest at least 95 % are named, and every one of 100 near copies is."""
        features = rows(self.N, width=160, centres=100)
        random = np.random.default_rng(1)
        features[:100] = features[100:200] + 0.02 * random.normal(size=(100, 160))
        indices, similarities = nearest(features, 5)
        true = np.argsort(-cosines(features), axis=1)[:, :5]
        found = [np.isin(a, b).mean() for a, b in zip(true, indices, strict=True)]
        assert np.mean(found) > 0.95
        assert (indices[:100, 0] == np.arange(100, 200)).all()
        assert (np.diff(similarities, axis=1) <= 0).all()
        assert (indices != np.arange(self.N)[:, np.newaxis]).all()

    def test_the_same_rows_give_the_same_bytes(self) -> None:
        """Two searches agree in every index and similarity."""
        features = rows(self.N)
        first, second = nearest(features, 5), nearest(features, 5)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))

    def test_a_slice_of_a_wider_memory_map_is_as_good(self, tmp_path: Path) -> None:
        """Columns of a file give what an array in memory gives."""
        features = rows(self.N)
        table = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(self.N, 40))
        table[:, 8:32] = features
        for mapped, plain in zip(nearest(table[:, 8:32], 5), nearest(features, 5), strict=True):
            assert mapped.tobytes() == plain.tobytes()

    def test_what_an_inverted_file_does_not_find_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a list that holds a few rows and one probe, the rest of a line is -1."""
        monkeypatch.setattr(neighbours, "PROBES", 1)
        indices, similarities = nearest(rows(1100), 40)
        assert (indices[:, -1] == -1).any()
        assert (similarities[indices == -1] == -1).all()
        assert (indices[:, 0] >= 0).all()
