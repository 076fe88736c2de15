"""Small tasks of keras-hub on random weights: classifier, segmenters, detector."""

import keras
import keras_hub

models = keras_hub.models
SHAPE = (64, 64, 3)


def resnet():
    return models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=SHAPE,
    )


def classifier():
    """Builds a classifier with a preprocessor that rescales pixels."""
    converter = keras_hub.layers.ImageConverter(image_size=SHAPE[:2], scale=1 / 255)
    preprocessor = models.ImageClassifierPreprocessor(converter)
    return models.ImageClassifier(resnet(), num_classes=5, preprocessor=preprocessor, activation="softmax")


def deeplab():
    """DeepLabV3 on the pyramid of a ResNet."""
    backbone = models.DeepLabV3Backbone(
        image_encoder=resnet(),
        spatial_pyramid_pooling_key="P4",
        low_level_feature_key="P2",
        upsampling_size=4,
        dilation_rates=[2, 4],
        projection_filters=16,
        image_shape=SHAPE,
    )
    return models.DeepLabV3ImageSegmenter(backbone, num_classes=3)


def segformer():
    """SegFormer on a small MiT."""
    encoder = models.MiTBackbone(
        layerwise_depths=[1, 1, 1, 1],
        num_layers=4,
        layerwise_num_heads=[1, 1, 2, 2],
        layerwise_sr_ratios=[4, 2, 1, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        image_shape=SHAPE,
        hidden_dims=[8, 16, 32, 64],
    )
    backbone = models.SegFormerBackbone(image_encoder=encoder, projection_filters=32)
    return models.SegFormerImageSegmenter(backbone, num_classes=3)


def retinanet(encoder=None):
    """RetinaNet on the pyramid of a ResNet."""
    backbone = models.RetinaNetBackbone(
        image_encoder=encoder or resnet(), min_level=3, max_level=5, use_p5=False, image_shape=SHAPE
    )
    return models.RetinaNetObjectDetector(backbone, num_classes=4, bounding_box_format="xyxy")


TASKS = {"classifier": classifier, "DeepLabV3": deeplab, "SegFormer": segformer, "RetinaNet": retinanet}


def build(name: str) -> keras.Model:
    """Builds a task with random weights from a fixed seed."""
    keras.utils.set_random_seed(0)
    return TASKS[name]()
