"""GRPO: responses to a prompt compared with each other, without a critic; the KL in the loss.

    python -m train.main --config configs/grpo.py:runs/mine

`--config.advantage.method=rloo` is RLOO; with it the KL belongs in the reward, as
`--config.kl.where=reward --config.kl.estimator=k1`. https://arxiv.org/abs/2402.03300 has the mean
of every response first and k3 in the loss; here each token counts the same, and the estimator is
k2, whose gradient is that of the KL.
"""

from ml_collections import ConfigDict

from configs import ppo


def get_config(folder: str = "runs/sft") -> ConfigDict:
  config = ppo.get_config(folder)
  config.advantage.update(method="grpo", whiten=False)
  config.kl.update(beta=0.04, where="loss", estimator="k2")
  config.kl.target = None
  config.rollout.samples = 8
  config.data.batch_size = 8
  return config
