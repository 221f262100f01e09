"""Models of others (PyTorch), as a program that `forecast.py` times from outside.

python benchmarks/peers.py CODE DEVICE

CODE is a checkout of https://github.com/amazon-science/chronos-forecasting; DEVICE is cpu or cuda.
It runs in an environment of its own, which has PyTorch, transformers, accelerate, einops and
pandas, and answers commands as `published.py` does.

A peer has random weights in the geometry of the model it is named after: the time of a forecast
does not depend on what the weights are. It forecasts by its own class, by the call that its users
make, and goes on beyond one pass in one of two ways, FEEDBACKS. "quantiles" is its own: each later
pass goes on from each of the nine quantiles of the one before, so it has nine times as many series.
"median" is the least that any pass needs: the median is appended, and all passes are alike.
"""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.published import Program, forecast_values, main, reset_peak_memory

# Arguments of the T5 encoder-decoder, and of what Chronos-Bolt has around it.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "chronos-bolt-tiny": {
        "d_model": 256,
        "d_kv": 64,
        "d_ff": 1024,
        "num_heads": 4,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "feed_forward_proj": "relu",
        "vocab_size": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "chronos_config": {
            "context_length": 2048,
            "prediction_length": 64,
            "input_patch_size": 16,
            "input_patch_stride": 16,
            "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            "use_reg_token": True,
        },
    }
}

FEEDBACKS = ("quantiles", "median")


class ChronosBolt(Program):
    """The work of a Chronos-Bolt; see `Program`."""

    def __init__(self, device: str):
        super().__init__(device)
        self.transformers: Any = importlib.import_module("transformers")
        self.beside = f", transformers {self.transformers.__version__}"
        self.bolt: Any = importlib.import_module("chronos.chronos_bolt")
        # Beyond its 64 points it would say at each call that these are recommended.
        warnings.filterwarnings("ignore", "We recommend keeping prediction length")

    def forecast(
        self, model: str, feedback: str, batch: int, context: int, horizon: int, dtype: str
    ) -> dict[str, Any]:
        """Builds the work "forecast": nine quantiles by `predict_quantiles`, arrays in and out.

        Args:
          model: of GEOMETRIES.
          feedback: of FEEDBACKS, what a later pass goes on from.
          batch: series.
          context: points of each that are read.
          horizon: points to forecast.
          dtype: of parameters and computation.

        Returns:
          see `built`; the forecast is the median.
        """
        torch = self.torch
        torch.manual_seed(0)
        config = self.transformers.T5Config(**GEOMETRIES[model])
        built = self.bolt.ChronosBoltModelForForecasting(config)
        built = built.to(self.device, getattr(torch, dtype)).eval()
        pipeline = self.bolt.ChronosBoltPipeline(built)
        reset_peak_memory()  # building is no part of a forecast
        values = torch.from_numpy(forecast_values(batch, context))

        longest = horizon if feedback == "quantiles" else pipeline.model_prediction_length

        def forecast() -> np.ndarray:
            read = values
            with torch.inference_mode():
                while read.shape[1] < context + horizon:
                    _, median = pipeline.predict_quantiles(read, prediction_length=longest)
                    read = torch.cat([read, median], dim=1)
            return read[:, context : context + horizon].numpy()

        return self.built(forecast, (batch, horizon))


if __name__ == "__main__":
    main({"chronos": ChronosBolt})
