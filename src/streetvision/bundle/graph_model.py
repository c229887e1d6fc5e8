"""The model of an exported bundle: Pillow, an exported graph, and NumPy. Does not import torch.

Shapes: H, W pixels of an image; h, w pixels of the model's input; B images, V views, T patches of a dense pass.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.format import Bundle, read_classifier_description, read_fusion_description
from streetvision.bundle.model import BundleModel, ModelOutput, Prepared, ViewLogits
from streetvision.bundle.runtimes.graph import DENSE, Graph, GraphOutput
from streetvision.bundle.runtimes.registry import open_graph
from streetvision.bundle.view_fusion import FusedViews, ViewFusion
from streetvision.contracts.policies import Precision
from streetvision.data.image_file import DecodedImage, Pixels
from streetvision.io.resize import Box, ImageSize, fit_box, fit_pixels
from streetvision.models.config import ClassifierDescription, FusionDescription, ViewsConfig
from streetvision.models.preprocessing import input_decode_size
from streetvision.models.views import (
    VIEW_CHUNK_SIZE,
    ViewArrays,
    check_dense_size,
    plan_patches,
    plan_views,
    views_per_image,
)


class GraphModel(BundleModel):
    """An exported graph, and a fusion of views if the bundle has one.

    Args:
        graph: Computes features and logits.
        description: The classifier that was exported.
        fusion: The fusion of views; None: each image is one view.
        dense: Computes the patches of a dense pass, if the fusion has one.
    """

    def __init__(
        self,
        graph: Graph,
        description: ClassifierDescription,
        fusion: ViewFusion | None = None,
        dense: Graph | None = None,
    ) -> None:
        self.graph, self.description, self.fusion, self.dense = graph, description, fusion, dense
        self.image_size = description.image_size
        if fusion is not None:
            self.inference = fusion.description.mode
            self.views_per_image = views_per_image(fusion.description, self.image_size)

    def decode_size(self, image: ImageSize) -> ImageSize:
        """Return the smallest size to which the decoder may reduce an image of H x W pixels before `prepare`."""
        return input_decode_size(image, self.description, None if self.fusion is None else self.fusion.description)

    def prepare(self, pixels: Pixels) -> Prepared:
        """Resize a decoded image, uint8 (H, W, 3), or split it into views."""
        if self.fusion is not None:
            description = self.fusion.description
            return make_view_arrays(
                pixels, description.views, image_size=self.image_size, dense_size=description.dense_size
            )
        return fit_pixels(pixels, self.image_size)

    def outputs(self, images: Sequence[Prepared]) -> ModelOutput:
        """Return logits and features of prepared images in one batch."""
        if self.fusion is None:
            single = self.graph(np.stack([image for image in images if not isinstance(image, ViewArrays)]))
            return ModelOutput(single.logits, single.features)
        views = [image for image in images if isinstance(image, ViewArrays)]
        output = self._run_views(np.concatenate([image.pixels[image.mask] for image in views]))
        fused, whole, start = [], [], 0
        for image in views:
            stop = start + int(image.mask.sum())
            whole.append(output.features[start])  # the first view, which is never masked
            of_image = GraphOutput(output.features[start:stop], output.logits[start:stop])
            fused.append(self._fuse(of_image, image).logits)
            start = stop
        return ModelOutput(np.array(fused, dtype=np.float32), np.stack(whole))

    def view_logits(self, image: DecodedImage) -> ViewLogits:
        """Return the logits of an image and of each of its views."""
        height, width = image.size
        prepared = self.prepare(image.pixels)
        if self.fusion is None or not isinstance(prepared, ViewArrays):
            logits = self.logits([prepared])
            return ViewLogits(logits[0], (Box(0, 0, width, height),), logits, np.ones(1, dtype=np.float32))
        output = self._run_views(prepared.pixels[prepared.mask])
        fused, description = self._fuse(output, prepared), self.fusion.description
        views = zip(plan_views(height, width, description.views), prepared.mask, strict=True)
        boxes = [box for box, used in views if used]
        if description.dense_size is not None:
            boxes += plan_patches(height, width, description.dense_size, len(fused.mask) - 1)
        return ViewLogits(
            fused.logits.astype(np.float32),
            tuple(box for box, used in zip(boxes, fused.mask, strict=True) if used),
            fused.view_logits[fused.mask].astype(np.float32),
            fused.weights[fused.mask].astype(np.float32),
        )

    def with_single_view(self) -> "GraphModel":
        """Return the same graph without a fusion of views."""
        return GraphModel(self.graph, self.description)

    def _fuse(self, output: GraphOutput, views: ViewArrays) -> FusedViews:
        """Fuse the views of one image."""
        assert self.fusion is not None
        patches = None if self.dense is None else self.dense.run(views.dense)[0][0]
        return self.fusion(output.features, output.logits, views, patches)

    def _run_views(self, pixels: NDArray[np.uint8]) -> GraphOutput:
        """Run the graph on views (V, 3, h, w) in chunks, which bounds its memory."""
        starts = range(0, len(pixels), VIEW_CHUNK_SIZE)
        outputs = [self.graph(pixels[start : start + VIEW_CHUNK_SIZE]) for start in starts]
        return GraphOutput(*(np.concatenate(parts) for parts in zip(*outputs, strict=True)))


def open_graph_model(
    folder: Path,
    description: ClassifierDescription,
    fusion: FusionDescription | None,
    *,
    runtime: str,
    precision: Precision,
    feature_dim: int,
    fusion_weights: str | None = None,
    threads: int | None = None,
) -> GraphModel:
    """Open the exported files in `folder`.

    Args:
        folder: Holds the graph and, for a trained fusion, its weights.
        description: The classifier that was exported.
        fusion: The fusion of views; None: each image is one view.
        runtime: A name in RUNTIMES.
        precision: Precision of the graph.
        feature_dim: Width of the features that the graph returns.
        fusion_weights: File name of the weights of a trained fusion.
        threads: Threads of the runtime; None: one per CPU core.

    Raises:
        ConfigError: The runtime is not installed.
        ArtifactError: The files are damaged or do not fit the descriptions.
    """
    graph = open_graph(
        folder,
        name=runtime,
        precision=precision,
        image_size=description.image_size,
        feature_dim=feature_dim,
        threads=threads,
    )
    if fusion is None:
        return GraphModel(graph, description)
    weights = None if fusion_weights is None else folder / fusion_weights
    if fusion.dense_size is None:
        return GraphModel(graph, description, ViewFusion(fusion, feature_dim, weights))
    check_dense_size(fusion.dense_size, description.image_size)
    of_patches = ViewFusion(fusion, None, weights)
    dense = open_graph(
        folder,
        name=runtime,
        precision=precision,
        image_size=fusion.dense_size,
        feature_dim=of_patches.width,
        threads=threads,
        part=DENSE,
    )
    return GraphModel(graph, description, of_patches, dense)


def load_graph_model(bundle: Bundle, *, threads: int | None = None) -> GraphModel:
    """Open the model of a bundle that has a runtime; raises as `open_graph_model`."""
    runtime = bundle.manifest.runtime
    assert runtime is not None, "a bundle without a runtime needs PyTorch"
    return open_graph_model(
        bundle.folder,
        read_classifier_description(bundle),
        read_fusion_description(bundle),
        runtime=runtime.name,
        precision=runtime.precision,
        feature_dim=runtime.feature_dim,
        fusion_weights=runtime.fusion_weights,
        threads=threads,
    )


def make_view_arrays(
    pixels: Pixels, config: ViewsConfig | None, *, image_size: ImageSize, dense_size: ImageSize | None = None
) -> ViewArrays:
    """Split an image, uint8 (H, W, 3), into views of h, w = image_size; see `make_views`."""
    height, width, _ = pixels.shape
    boxes = plan_views(height, width, config)
    views = np.zeros((len(boxes), 3, *image_size), dtype=np.uint8)
    content = np.zeros((len(boxes), 4), dtype=np.int64)
    # In a small image several tiles have the same box; only the first one counts.
    mask = np.array([box not in boxes[:index] for index, box in enumerate(boxes)])
    for index, box in enumerate(boxes):
        if mask[index]:
            views[index] = fit_pixels(pixels[box.top : box.bottom, box.left : box.right], image_size)
            content[index] = fit_box(box.size, image_size)
    if dense_size is None:
        return ViewArrays(views, content, mask, np.zeros((0, 3, 0, 0), np.uint8), content[:0])
    dense_content = np.array([fit_box((height, width), dense_size)])
    return ViewArrays(views, content, mask, fit_pixels(pixels, dense_size)[None], dense_content)
