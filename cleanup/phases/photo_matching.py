"""Compares vectors of tracks and identities with the photos of a show's people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.facebank_matching import MIN_PROBABILITY, MatchLimits, PersonSimilarity, combine_seeds
from cleanup.algorithms.similarity_scale import SimilarityScale, place_threshold
from cleanup.interfaces import Facebank
from cleanup.settings import GroupClustersSettings, Threshold

# Pairs of people on photos, of six people or so, that tell more than an episode does.
_MIN_PAIRS = 12


@dataclass(frozen=True)
class PhotoMatcher:
    """The photos of one show, made with one model.

    Attributes:
        facebank: Holds them.
        show: The show.
        model: Recogniser of the vectors that are compared.
        settings: What a match has to reach.
        known: The model's scale on photos, or None.
    """

    facebank: Facebank
    show: str
    model: str
    settings: GroupClustersSettings
    known: SimilarityScale | None = None

    def compare(self, vectors: Sequence[NDArray[np.float32]]) -> list[list[PersonSimilarity]]:
        """The people that come nearest to each vector of shape (d,); nobody where the show has no photos.

        Raises:
            FacebankError: The Facebank does not answer or holds another model's embeddings.
        """
        people: list[list[PersonSimilarity]] = [[] for _ in vectors]
        if not people:
            return people
        for match in self.facebank.match(self.show, self.model, np.array(vectors, np.float32)):
            second = match.similarity if match.second_similarity is None else match.second_similarity
            similarity = combine_seeds(match.similarity, second)
            people[match.index].append(PersonSimilarity(match.person_id, match.name, similarity))
        return people

    def place_limits(self, scale: SimilarityScale) -> MatchLimits:
        """What a match has to reach; of a similarity that is given, it need not be probable as well.

        A face of the episode and a photo of somebody else are as alike as photos of two people are. Where there are too
        few people to tell, the scale is the episode's.
        """
        if self.known is not None and self.known.n_pairs >= _MIN_PAIRS:
            scale = self.known
        similarity, margin = self.settings.facebank_similarity, self.settings.facebank_margin
        return make_limits(scale, similarity, margin, MIN_PROBABILITY if similarity.is_auto else 0.0)


def make_limits(scale: SimilarityScale, similarity: Threshold, margin: Threshold, probability: float) -> MatchLimits:
    """What a match has to reach on a model's scale; numbers that were given explicitly are cosines."""
    return MatchLimits(
        similarity=place_threshold(scale, similarity.value, is_auto=similarity.is_auto).value,
        margin=scale.width(margin.value) if margin.is_auto else margin.value,
        probability=probability,
        scale=scale,
    )
