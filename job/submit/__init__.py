"""Sends the job to a Kubernetes cluster and follows it there. No TensorFlow."""
