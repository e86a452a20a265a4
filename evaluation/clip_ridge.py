"""Ridge regression from whole clips to whole clips, fitted to the pairs that the model trains on. Used by baselines.py.

Every number of the output is a linear function of every number of the input, 153,600 of each for 16 s. That is too many
weights to store. In the dual form (Saunders, Gammerman and Vovk 1998), the prediction is a weighted sum of the training
outputs, and the weights follow from inner products of clips. If this is as good as the model, no transformer is needed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scipy.linalg
import torch

from common.progress import Progress

MAX_PAIRS = 2000  # fit to at most this many, evenly sampled; a dataset has fewer by default
BLOCK = 128  # pairs per block. Two blocks of 16 s take 320 MB
FOLDS = 5
PENALTIES = np.logspace(-3, 2, 11)  # as shares of the inputs' mean squared distance from their mean


class Pairs(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]: ...


class ClipRidge:
    """Fitted to training pairs, which are read again for each block of predictions."""

    def __init__(self, pairs: Pairs, tracks: list[str], std: torch.Tensor, progress: Progress):
        """tracks: the track of each training pair. std: [C, 1], which gives all channels of the input the same weight.
        The penalty is chosen by cross-validation with five folds of tracks, or of pairs if there is only one track.
        """
        self.pairs, self.std = pairs, std.float().cpu()
        count = min(len(pairs), MAX_PAIRS)
        self.chosen = np.linspace(0, len(pairs) - 1, count).round().astype(int)
        self.inputs, outputs = self._products(progress)
        numbers = {track: number for number, track in enumerate(dict.fromkeys(tracks))}
        fold = np.array([numbers[tracks[i]] if len(numbers) > 1 else n for n, i in enumerate(self.chosen)]) % FOLDS
        self.penalty = self._best_penalty(outputs, fold)

    def predict(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Predict what follows each input [C, T], in the same shape."""
        wanted = self._rows(inputs)
        products = np.concatenate([(wanted @ self._rows(block).T).numpy() for block in self._blocks(0)], axis=1)
        weights = torch.from_numpy(_weights(self.inputs, products, self.penalty)).float()
        predictions = torch.zeros(len(inputs), wanted.shape[1])
        for block, some in zip(self._blocks(1), weights.split(BLOCK, dim=1), strict=True):
            predictions += some @ torch.stack(block).flatten(1)
        return list(predictions.view(len(inputs), *inputs[0].shape))

    def _blocks(self, side: int):
        """The inputs (side 0) or outputs (side 1) of the chosen pairs, block by block."""
        for start in range(0, len(self.chosen), BLOCK):
            yield [self.pairs[i][side] for i in self.chosen[start : start + BLOCK]]

    def _rows(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Inputs as rows [n, C T], with scaled channels."""
        return (torch.stack(inputs) / self.std).flatten(1)

    def _products(self, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Inner products of all chosen inputs with each other, and of all outputs, [n, n] each."""
        products = np.zeros((2, len(self.chosen), len(self.chosen)))
        for first in range(0, len(self.chosen), BLOCK):
            rows = self._both(first)
            for second in range(first, len(self.chosen), BLOCK):
                columns = rows if second == first else self._both(second)
                for side in (0, 1):
                    product = (rows[side] @ columns[side].T).numpy()
                    products[side, first : first + BLOCK, second : second + BLOCK] = product
                    products[side, second : second + BLOCK, first : first + BLOCK] = product.T
            progress(min(first + BLOCK, len(self.chosen)), len(self.chosen), "training clips compared")
        return products[0], products[1]

    def _both(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A block's inputs and outputs, [n, C T] each."""
        block = [self.pairs[i] for i in self.chosen[first : first + BLOCK]]
        return self._rows([source for source, _ in block]), torch.stack([target for _, target in block]).flatten(1)

    def _best_penalty(self, outputs: np.ndarray, fold: np.ndarray) -> float:
        """The penalty with the least squared error in cross-validation."""
        errors = np.zeros(len(PENALTIES))
        for left_out in np.unique(fold):
            a, b = np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)
            if not len(a):
                return float(PENALTIES[-1])  # there is only one pair
            for k, penalty in enumerate(PENALTIES):
                w = _weights(self.inputs[np.ix_(a, a)], self.inputs[np.ix_(b, a)], penalty)
                # |y − Σ w y_i|² without |y|², which does not depend on the penalty
                errors[k] += np.sum((w @ outputs[np.ix_(a, a)]) * w) - 2 * np.sum(w * outputs[np.ix_(b, a)])
        return float(PENALTIES[errors.argmin()])


def _weights(products: np.ndarray, wanted: np.ndarray, penalty: float) -> np.ndarray:
    """The weights [m, n] of n training outputs in m predictions.

    products, wanted: inner products of the training inputs with each other, [n, n], and of m inputs with them, [m, n].
    With both centered on the mean input, the weights are k (K + λ)⁻¹. To make the prediction relative to the mean
    output, subtract the mean of the weights from each and add 1/n.
    """
    mean = products.mean(axis=0)
    centered = products - mean - mean[:, None] + mean.mean()
    wanted = wanted - wanted.mean(axis=1, keepdims=True) - mean + mean.mean()
    scale = max(np.trace(centered) / len(centered), 1e-12)
    weights = scipy.linalg.solve(centered + penalty * scale * np.eye(len(centered)), wanted.T, assume_a="pos").T
    return 1 / len(mean) + weights - weights.mean(axis=1, keepdims=True)
