
import torch
from vae.data import test_view
from vae.objective import distortion, log_weights
from shared.kl import *
from shared.seeding import generator, EVALUATION
from vae.model import VAE

@torch.no_grad()
def iw(model, x, samples, chunk=250, per=50):
    g=generator(x.device,0,EVALUATION,1)
    res=[]
    for rows in x.split(chunk):
        lw=[]
        left=samples
        while left>0:
            k=min(per,left); left-=k
            eps=torch.randn(k,len(rows),model.decoder[0].in_features,generator=g)
            lw.append(log_weights(rows, model(rows,eps)))
        res.append(importance_weighted_bound(torch.cat(lw)))
    return torch.cat(res)

@torch.no_grad()
def quick_bound(model, data, config):
    x = test_view(data.unseen_images, config.pixels)
    g = generator(x.device, 0, EVALUATION, 7)
    if config.objective=="vib":
        err=0; ce=0
        for xx,yy in zip(x.split(1000), data.unseen_labels.split(1000)):
            out=model(xx, torch.randn(12,len(xx),config.latent,generator=g))
            p=out.logits.softmax(-1).mean(0); err+=(p.argmax(-1)!=yy).sum().item(); ce+=-p.log().gather(1,yy[:,None]).sum().item()
        mu,lv=model.encode(x); e0=(model.decode(mu[None])[0].argmax(-1)!=data.unseen_labels).float().sum().item()
        return {"err12":err/len(x)*100,"errmean":e0/len(x)*100,"ce":ce/len(x),"unseen_rate":kl_standard_normal(mu,lv).sum(-1).mean().item()}
    n=1 if config.objective not in ("iwae","dreg") else 5
    elbo=[];r=[];
    for xx in x.split(1000):
        out=model(xx, torch.randn(n,len(xx),config.latent,generator=g))
        elbo.append(importance_weighted_bound(log_weights(xx,out))); r.append(kl_standard_normal(out.mu,out.logvar))
    kl=torch.cat(r).mean(0)
    return {"unseen_bound":torch.cat(elbo).mean().item(),"unseen_rate":kl.sum().item(),"active":int((kl>.01).sum())}
