import sys, json, random, warnings, traceback
sys.path.insert(0,'/work/main/tests')
import torch, pytest
torch.set_num_threads(1)
from pathlib import Path
import coterie
from coterie.errors import CoterieError
from checkpoint.test_fuzz_configurations import configurations
from engine.damage import copy_of

@pytest.mark.parametrize("family", ["qwen3_omni","qwen3_moe","gpt_oss","deepseek_v3","mixtral","glm4_moe"])
def test_it(family, zoo_checkpoint, tmp_path):
    d=copy_of(zoo_checkpoint(family), tmp_path); p=d/"config.json"
    good=p.read_bytes(); n=loaded=0; bad=[]
    for case,content in configurations(good, 1500):
        p.write_bytes(content)
        if case%3: continue
        n+=1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with torch.no_grad():
                    m=coterie.load(d, expert_memory="50%", max_context=64)
            except CoterieError: continue
            except Exception as e:
                bad.append((case,'load',repr(e)[:200])); continue
            loaded+=1
            try:
                ids=torch.randint(0,20,(1,5))
                with torch.no_grad(): m.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
            except CoterieError: pass
            except Exception as e:
                a=json.loads(good); b=json.loads(content)
                def diff(a,b,path=''):
                    if isinstance(a,dict) and isinstance(b,dict):
                        for k in set(a)|set(b): yield from diff(a.get(k,'-'),b.get(k,'-'),path+'.'+str(k))
                    elif a!=b: yield path,repr(a)[:60],repr(b)[:60]
                bad.append((case,'generate',repr(e)[:200],list(diff(a,b)),traceback.format_exc()[-700:]))
            finally:
                m.coterie.close()
    print(family,n,loaded,len(bad))
    for b in bad[:12]: print(*b,sep='\n   ')
