#!/bin/sh
# docker run IMAGE run --data ...   python -m job run --data ...
# docker run IMAGE                  `run` where REGRAFT_DATA is set, the help where it is not
# docker run IMAGE train            the same as `run`: what SageMaker starts (docs/platforms.md)
# docker run IMAGE sh               any other program of the image, as it is
set -eu

if [ $# -eq 0 ]; then
    # Where it is plain that a job is meant: by its data, or on Vertex AI.
    if [ -n "${REGRAFT_DATA:-}${AIP_DATA_FORMAT:-}${AIP_MODEL_DIR:-}" ]; then
        set -- run
    else
        set -- --help
    fi
fi

case $1 in
    -*) ;;
    train) shift; set -- run "$@" ;;
    serve)
        echo 'error: this image trains; serve its models with an image of TensorFlow Serving' >&2
        exit 2
        ;;
    *)
        # Only a path counts: `command -v` also knows the shell's own words.
        case $(command -v "$1" || true) in
            /*) exec "$@" ;;
        esac
        ;;
esac

# exec: SIGTERM must reach Python, and its exit code must reach whoever started the container.
exec python -m job "$@"
