package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// inbox is a receiver of notices.
type inbox struct {
	url string

	mu   sync.Mutex
	down int         // status that it responds with, 0: it takes what comes; guarded by mu
	got  []delivered // guarded by mu
}

type delivered struct {
	notice
	key   string
	taken bool
}

func newInbox(t testing.TB) *inbox {
	b := &inbox{}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	b.url = srv.URL
	return b
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d := delivered{key: r.Header.Get("Idempotency-Key")}
	if err := json.NewDecoder(r.Body).Decode(&d.notice); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.taken = b.down == 0; !d.taken {
		w.WriteHeader(b.down)
	}
	b.got = append(b.got, d)
}

// set has it respond with a status from now on.
func (b *inbox) set(status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = status
}

func (b *inbox) all() []delivered {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

// taken are what it took, as "event outcome", each once.
func (b *inbox) taken() (list []string) {
	keys := map[string]bool{}
	for _, d := range b.all() {
		if d.taken && !keys[d.key] {
			keys[d.key] = true
			list = append(list, strings.TrimSpace(d.Event+" "+d.Outcome))
		}
	}
	return list
}

// runOnce runs a job by hand and waits until it has ended.
func runOnce(p *process, name string) {
	p.t.Helper()
	var j struct {
		Good int64 `json:"success_count"`
		Bad  int64 `json:"error_count"`
	}
	ended := func() int64 { p.must("GET", "/v1/jobs/"+name, nil, &j); return j.Good + j.Bad }
	before := ended()
	p.must("POST", "/v1/jobs/"+name+"/run", nil, nil)
	p.eventually("end of the run", func() bool { return ended() > before })
}

// TestNotices: a receiver that was down, and a server that was killed between an end and its notice, lose no notice and
// change no order; every attempt of one has the same key.
func TestNotices(t *testing.T) {
	dir, all, own := t.TempDir(), newInbox(t), newInbox(t)
	args := []string{"--notify-webhook=" + all.url, "--notify-on=end,failed,recovered"}
	p := startServer(t, dir, args...)
	j := shellJob("a", "@manually", "echo no space left; test -f ok")
	j.Notify = []notifyRule{{On: []string{eventStart, eventFailed}, Webhook: own.url + "/secret"}}
	p.must("POST", "/v1/jobs", j, nil)
	all.set(http.StatusServiceUnavailable)
	runOnce(p, "a")
	p.eventually("attempts", func() bool { return len(all.all()) >= 2 })
	p.kill()
	p = startServer(t, dir, args...)
	runOnce(p, "a")
	all.set(0)
	j.ExecutorConfig["command"] = "true"
	p.must("POST", "/v1/jobs", j, nil)
	runOnce(p, "a")
	p.eventually("notices", func() bool { return len(all.taken()) == 5 && len(own.taken()) == 4 })
	if diff := cmp.Diff([]string{"end failed", "failed failed", "end failed", "end success", "recovered success"}, all.taken()); diff != "" {
		t.Errorf("notices (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"start", "failed failed", "start", "start"}, own.taken()); diff != "" {
		t.Errorf("notices of the job's own receiver (-want +got):\n%s", diff)
	}
	keys := map[string]string{}
	for _, d := range all.all() {
		text := d.Event + d.Execution
		if was, ok := keys[d.key]; ok && was != text {
			t.Errorf("one key for %q and %q", was, text)
		}
		keys[d.key] = text
	}
	last := own.all()[1]
	if last.Reason != "exit status 1" || last.Output != "no space left\n" || last.Attempt != 1 || last.Due.IsZero() ||
		last.Text != "a failed on n1: exit status 1\nno space left" || !strings.Contains(last.Links.Execution, "/#/jobs/a/executions/") {
		t.Errorf("a notice is %+v, with links %+v", last, last.Links)
	}
	if strings.Contains(p.log.String(), "secret") {
		t.Errorf("the log shows the URL of a receiver:\n%s", &p.log)
	}
}

// TestCourier: a receiver that hangs, fails, redirects for ever or sends without end costs no other one anything, and
// what a job names cannot lead where its http requests may not go.
func TestCourier(t *testing.T) {
	hung, done := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/hangs", func(http.ResponseWriter, *http.Request) { <-hung })
	mux.HandleFunc("/fails", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	mux.HandleFunc("/redirects", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/redirects", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/floods", func(w http.ResponseWriter, _ *http.Request) {
		defer close(done)
		for n := 0; n < 1<<30; n += 1 << 16 {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
		t.Error("all of 1 GB was read")
	})
	srv, second, other := httptest.NewServer(mux), httptest.NewServer(mux), newInbox(t)
	defer srv.Close()
	defer second.Close()
	defer close(hung)
	c, err := newCourier(notifyConfig{Webhook: other.url}, nodeLimits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * noticeSendsPer {
		go c.deliver(t.Context(), receiverURL+srv.URL+"/hangs", "key", notice{})
	}
	waitFor(t, "attempts that hang", func() string { return "" }, func() bool {
		return len(c.slots(receiverURL+strings.TrimPrefix(srv.URL, "http://"))) == noticeSendsPer
	})
	ctx, cancel := context.WithTimeout(t.Context(), noticeTimeout/2)
	defer cancel()
	if err := c.deliver(ctx, receiverNotify, "key", notice{Event: eventFailed}); err != nil || len(other.taken()) != 1 {
		t.Errorf("beside a receiver that hangs: %v", err)
	}
	for path, want := range map[string]string{
		"/fails": "responded with status 500", "/redirects": "responded with status 307", "/floods": "", "/none": "status 404",
	} {
		err := c.deliver(t.Context(), receiverURL+second.URL+path, "key", notice{})
		if got := fmt.Sprint(err); want == "" && err != nil || !strings.Contains(got, want) || strings.Contains(got, path) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	<-done
	strict, err := newCourier(notifyConfig{Webhook: other.url}, nodeLimits{DenyPrivate: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := strict.deliver(t.Context(), receiverURL+other.url, "key", notice{}); err == nil || !strings.Contains(err.Error(), "--http-deny-private") {
		t.Errorf("a job's receiver at a private address: %v", err)
	}
	if err := strict.deliver(t.Context(), receiverNotify, "key", notice{}); err != nil {
		t.Errorf("the operator's receiver at a private address: %v", err)
	}
}
