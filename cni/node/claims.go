package node

import "sync"

// claims says whose each network namespace is. Two pods never share one: when
// the runtime gives a pod's namespace for another pod, capturing it once more
// would hand one pod's traffic out under the other's name.
type claims struct {
	mu  sync.Mutex
	who map[uint64]claim // guarded by mu; by the namespace's cookie
}

type claim struct {
	uid, name string
	times     int // a job may look again while the pod holds it
}

// take claims a namespace for a pod, or names the pod whose it is.
func (c *claims) take(cookie uint64, uid, name string) (release func(), owner string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.who == nil {
		c.who = map[uint64]claim{}
	}
	have, ok := c.who[cookie]
	if ok && have.uid != uid {
		return nil, have.name
	}
	c.who[cookie] = claim{uid, name, have.times + 1}
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		have := c.who[cookie]
		if have.times--; have.times > 0 {
			c.who[cookie] = have
		} else {
			delete(c.who, cookie)
		}
	}), ""
}
