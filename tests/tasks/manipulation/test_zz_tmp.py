import sys, time, json
from vision_lowrank.config import load_config
from vision_lowrank.experiment import run
def test_a(detection):
    t=time.time()
    r = run(load_config(detection))
    print(time.time()-t)
    print(json.dumps(r["seeds"]["1"]["facts"], indent=1)[:3000])
    print({k:round(v['mean'],3) for k,v in r["metrics"].items()})
