"""Saves the fitted pipeline as an MLflow model: ``python mlflow_save.py MODEL FOLDER``."""

from __future__ import annotations

import sys

import joblib
import mlflow.sklearn

model = joblib.load(sys.argv[1])
mlflow.sklearn.save_model(model, sys.argv[2], serialization_format="cloudpickle", pyfunc_predict_fn="predict_proba")
print("{}")
