"""stub"""
import numpy as np
from .. import metrics
def check_measure(name, value): pass
class Calibration:
    @classmethod
    def fit(cls, scores, ids, labels, counts): return cls()
    def probabilities(self, scores, ids, counts): return np.where(scores < -1e29, 0, 1/(1+np.exp(-np.clip(4*scores+.8,-50,50)))).astype(np.float32)
    def arrays(self): return {}
    @classmethod
    def from_arrays(cls, a): return cls()
def choose_decision(p, ids, labels, measure): return 0.3, 5
