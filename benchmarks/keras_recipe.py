"""The plain Keras recipe for transfer learning, as tutorials have it; nothing of the job in it.

    python benchmarks/keras_recipe.py --data FOLDER --module FOLDER --model FOLDER [--epochs 5]

Images come from `image_dataset_from_directory`, decoded images are kept in memory from the second
epoch on (`cache`), the backbone is frozen and runs over every image in every epoch.
"""

from __future__ import annotations

import argparse
import json

import keras
import tensorflow as tf
import tensorflow_hub as hub

SIZE = (224, 224)


class Backbone(keras.layers.Layer):
    """A Hub module as a frozen layer: `hub.KerasLayer` is of Keras 2 and does not fit in here."""

    def __init__(self, handle: str) -> None:
        super().__init__(trainable=False)
        self.module = hub.load(handle)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Map images, float32 `[n,h,w,3]` in [0,1], to features, float32 `[n,d]`."""
        return self.module(images)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, int]:
        """Tell Keras the size of a feature vector, which it cannot see."""
        return shape[0], self.module(tf.zeros([1, *SIZE, 3])).shape[-1]


def main() -> None:
    """Train, save, and print the validation accuracy as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--module", "--model"):
        parser.add_argument(name, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    training, validation = keras.utils.image_dataset_from_directory(
        options.data, validation_split=0.2, subset="both", seed=1, image_size=SIZE, batch_size=32
    )
    classes = len(training.class_names)
    model = keras.Sequential(
        [
            keras.layers.Input((*SIZE, 3)),
            keras.layers.Rescaling(1 / 255),
            Backbone(options.module),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        training.cache().prefetch(tf.data.AUTOTUNE),
        validation_data=validation.cache().prefetch(tf.data.AUTOTUNE),
        epochs=options.epochs,
        verbose=2,
    )
    model.export(options.model, verbose=False)
    print(json.dumps({"validation_accuracy": history.history["val_accuracy"][-1]}))


if __name__ == "__main__":
    main()
