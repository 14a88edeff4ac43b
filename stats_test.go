package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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
	p := startServer(t, dir, append(args, "--mail-host=127.0.0.1", "--mail-from=cron@example.org")...)
	j := shellJob("a", "@manually", "echo no space left; test -f ok")
	j.OwnerEmail = "ops@example.net" // gets no mail
	j.Notify = []notifyRule{{On: []string{eventStart, eventFailed}, Webhook: own.url + "/secret"}}
	p.must("POST", "/v1/jobs", j, nil)
	all.set(http.StatusServiceUnavailable)
	runOnce(p, "a")
	p.eventually("attempts", func() bool { return len(all.all()) >= 2 })
	p.eventually("two notices, of three that do not wait", func() bool {
		_, text := p.get("/metrics", nil)
		return strings.Contains(text, "belfry_notices_delivered_total 2\n") && strings.Contains(text, "belfry_notices_waiting 2\n")
	})
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

// TestNotices_Cluster: a server that fails is told of, and that no other one may; so is its return.
func TestNotices_Cluster(t *testing.T) {
	in := newInbox(t)
	f := newFleet(t, seedOf(t), 3, nil, "--notify-webhook="+in.url, "--notify-on=node-failed,node-back,no-majority-to-spare")
	leader := f.leader()
	other := f.nodes[0]
	if other == leader {
		other = f.nodes[1]
	}
	heard := func(events ...string) {
		f.await(strings.Join(events, " and "), fleetPatience, func() bool {
			got := in.taken()
			slices.Sort(got)
			return slices.Equal(got, events)
		})
	}
	f.await("heartbeats of all", fleetPatience, func() bool {
		_, _, text := leader.call("GET", "/v1/members", "", nil)
		return strings.Count(text, `"Status":1`) == 3
	})
	f.kill(other)
	heard("no-majority-to-spare", "node-failed")
	f.start(other)
	heard("no-majority-to-spare", "node-back", "node-failed")
	for _, d := range in.all() {
		if d.Event == eventNoSpare && d.Text != "belfry: 2 of 3 voters are there; if one more fails, nothing is scheduled" {
			t.Errorf("the text is %q", d.Text)
		}
	}
}

// TestNotices_Full: a receiver that takes nothing is not in the way of others, however much waits for it, and what is
// given up for that is in the log.
func TestNotices_Full(t *testing.T) {
	dir, shut, in := t.TempDir(), newInbox(t), newInbox(t)
	shut.set(http.StatusServiceUnavailable)
	p := startServer(t, dir)
	p.must("POST", "/v1/jobs", shellJob("a", "@manually", "false"), nil)
	p.kill()
	s, err := openStore(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.update("NORMAL", func() error {
		return s.exec(`INSERT INTO notices WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			SELECT i, 'end', i % 2 * i, ?, ?, '{"event":"end"}' FROM n`, 3*noticesMax, receiverURL+shut.url, time.Now().UnixNano())
	})
	if err := errors.Join(err, s.close()); err != nil {
		t.Fatal(err)
	}
	p = startServer(t, dir, "--notify-webhook="+in.url)
	runOnce(p, "a")
	p.eventually("the notice", func() bool { return slices.Equal(in.taken(), []string{"failed failed"}) })
	p.eventually("a line about what is lost", func() bool { return strings.Contains(p.log.String(), "notices=20001") })
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
	c, err := newCourier(notifyConfig{Webhook: hook{URL: other.url}}, "n1", nodeLimits{}, nil)
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
	strict, err := newCourier(notifyConfig{Webhook: hook{URL: other.url}}, "n1", nodeLimits{DenyPrivate: true}, nil)
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

// mailServer is a real SMTP server: with STARTTLS, or with TLS from the start.
type mailServer struct {
	addr  string
	roots *x509.CertPool

	mu   sync.Mutex
	got  []string // conversations, without what is base64; guarded by mu
	fail int      // conversations that it refuses; guarded by mu
}

func newMailServer(t *testing.T, implicit bool) *mailServer {
	web := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(web.Close)
	m := &mailServer{roots: x509.NewCertPool()}
	m.roots.AddCert(web.Certificate())
	config := &tls.Config{Certificates: web.TLS.Certificates}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	m.addr = l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if implicit {
				conn = tls.Server(conn, config)
			}
			go m.converse(conn, config, implicit)
		}
	}()
	return m
}

func (m *mailServer) converse(conn net.Conn, config *tls.Config, secure bool) {
	defer func() { conn.Close() }()
	in := bufio.NewReader(conn)
	say := func(text string) { io.WriteString(conn, text+"\r\n") }
	m.mu.Lock()
	m.fail--
	refused := m.fail >= 0
	m.mu.Unlock()
	if refused {
		say("421 later")
		return
	}
	say("220 mail.example.org")
	var log strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
		case "EHLO":
			if secure {
				say("250-mail.example.org\r\n250 AUTH PLAIN")
			} else {
				say("250-mail.example.org\r\n250 STARTTLS")
			}
		case "STARTTLS":
			say("220 go on")
			conn, secure = tls.Server(conn, config), true
			in = bufio.NewReader(conn)
			log.WriteString("STARTTLS\n")
		case "AUTH":
			log.WriteString(line)
			say("235 welcome")
		case "DATA":
			say("354 go on")
			for line != ".\r\n" {
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
				log.WriteString(line)
			}
			m.mu.Lock()
			m.got = append(m.got, log.String())
			m.mu.Unlock()
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			log.WriteString(line)
			say("250 ok")
		}
	}
}

func (m *mailServer) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

// TestCourier_Mail: mail goes over TLS, with STARTTLS or from the start, to addresses in the domains only.
func TestCourier_Mail(t *testing.T) {
	for _, implicit := range []bool{false, true} {
		server := newMailServer(t, implicit)
		cfg := notifyConfig{Page: "http://n1:8080/", Mail: mailConfig{Host: "example.com", Port: 25, Username: "u", Password: "secret",
			From: "belfry <cron@example.org>", Prefix: "[belfry]", roots: server.roots}}
		if implicit {
			cfg.Mail.Port = smtpsPort
		}
		if err := cfg.validate(); err != nil {
			t.Fatal(err)
		}
		c, err := newCourier(cfg, "n1", nodeLimits{}, func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server.addr)
		})
		if err != nil {
			t.Fatal(err)
		}
		n := notice{Event: eventFailed, Job: "müller", Execution: "1-n1", Node: "n1", Reason: "exit status 1" + strings.Repeat(".", 1000), Output: "it's = Ü\n.\nend\n"}
		if err := c.deliver(t.Context(), receiverMail+"ops@EXAMPLE.org", "key-1", n); err != nil {
			t.Fatal(err)
		}
		if err := c.deliver(t.Context(), receiverMail+"ops@example.net", "key-2", n); err == nil || !strings.Contains(err.Error(), "--mail-domains") {
			t.Errorf("an address outside the domains: %v", err)
		}
		if err := c.deliver(t.Context(), receiverOwner+"ops@example.net", "key-3", n); err != errNoMail {
			t.Errorf("an owner outside the domains: %v", err)
		}
		got := server.taken()
		if len(got) != 1 {
			t.Fatalf("%d mails, want 1: %q", len(got), got)
		}
		head, text, _ := strings.Cut(got[0], "From: ")
		want := "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00u\x00secret")) +
			"\r\nMAIL FROM:<cron@example.org>\r\nRCPT TO:<ops@EXAMPLE.org>\r\n"
		if !implicit {
			want = "STARTTLS\n" + want
		}
		if head != want {
			t.Errorf("the conversation is %q, want %q", head, want)
		}
		m, err := mail.ReadMessage(strings.NewReader("From: " + strings.ReplaceAll(strings.TrimSuffix(text, ".\r\n"), "\n..", "\n.")))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
		if want := "müller failed on n1: exit status 1" + strings.Repeat(".", 1000) + "\r\nit's = Ü\r\n.\r\nend\r\n\r\nhttp://n1:8080/#/jobs/m%C3%BCller/executions/1-n1\r\n"; err != nil || string(body) != want {
			t.Errorf("the text is %q (%v), want %q", body, err, want)
		}
		subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
		if err != nil || subject != "[belfry] müller failed on n1: exit status 1"+strings.Repeat(".", 165) || m.Header.Get("Message-Id") != "<key-1@example.org>" {
			t.Errorf("the header is %v", m.Header)
		}
	}
}

// TestCourier_Channels: Dkron's webhooks, Cronitor and Slack are sent what they expect.
func TestCourier_Channels(t *testing.T) {
	var got []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, fmt.Sprintf("%s %s %s %s %s", r.Method, r.URL, r.Header.Get("Content-Type"), r.Header.Get("X-Key"), body))
	}))
	defer srv.Close()
	cfg := notifyConfig{Post: hook{URL: srv.URL + "/post", Headers: []string{"Content-Type: text/plain", "X-Key: a:b"},
		Payload: "{{.JobName}} {{.Success}} {{.NodeName}} {{.ReportingNode}} {{.StartTime.Unix}} {{.FinishedAt.Unix}} {{.Output}}|{{.Report}}"},
		Pre: hook{URL: srv.URL + "/pre"}, Cronitor: hook{URL: srv.URL + "/p/key"}, Slack: map[string]string{"ops": srv.URL + "/slack"}}
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{eventStart: {receiverCronitor, receiverPre}, eventEnd: {receiverCronitor, receiverPost}}
	if diff := cmp.Diff(want, cfg.listeners()); diff != "" {
		t.Errorf("listeners (-want +got):\n%s", diff)
	}
	c, err := newCourier(cfg, "n1", nodeLimits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := notice{Event: eventEnd, Job: "a", Node: "n2", Group: 7, Outcome: outcomeSuccess, Started: time.Unix(1, 0), Finished: time.Unix(2, 0), whole: "out"}
	failed := n
	failed.Outcome, failed.Reason = outcomeFailed, "exit status 1"
	for _, d := range []struct {
		receiver string
		n        notice
	}{{receiverPost, n}, {receiverPre, notice{Event: eventStart}}, {receiverCronitor, notice{Event: eventStart, Job: "a", Node: "n2"}},
		{receiverCronitor, n}, {receiverCronitor, failed}, {receiverSlack + "ops #cron", failed}} {
		if err := c.deliver(t.Context(), d.receiver, "key", d.n); err != nil {
			t.Errorf("%s: %v", d.receiver, err)
		}
	}
	if err := c.deliver(t.Context(), receiverSlack+"dev #cron", "key", n); err == nil || !strings.Contains(err.Error(), "--slack-webhook dev=URL") {
		t.Errorf("a team without a webhook: %v", err)
	}
	if diff := cmp.Diff([]string{
		"POST /post text/plain a:b a true n2 n1 1 2 out|a ended on n2: success",
		"POST /pre   ",
		"GET /p/key/a?host=n2&message=a+started+on+n2&series=0&state=run   ",
		"GET /p/key/a?host=n2&message=a+ended+on+n2%3A+success&series=7&state=complete   ",
		"GET /p/key/a?host=n2&message=a+ended+on+n2%3A+failed%3A+exit+status+1&series=7&state=fail   ",
		`POST /slack application/json  {"channel":"#cron","text":"a ended on n2: failed: exit status 1"}`,
	}, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// TestJob_Receivers: Dkron Pro's processors are receivers of each failure, or of each end; what nobody will be told is a
// warning.
func TestJob_Receivers(t *testing.T) {
	j := job{OwnerEmail: "a@example.net", Processors: map[string]map[string]string{
		"slack": {"team": "ops", "channel": "#cron"}, "email": {"emails": "a@example.org, b@example.net", "onSuccess": "true"}}}
	for event, want := range map[string][]string{eventFailed: {"slack ops #cron"}, eventEnd: {"owner a@example.org", "owner b@example.net"}, eventLost: nil} {
		if got := j.receivers(event, true); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", event, got, want)
		}
	}
	c := &courier{cfg: notifyConfig{Mail: mailConfig{Host: "mail", From: "cron@example.org"}}}
	if err := c.cfg.validate(); err != nil {
		t.Fatal(err)
	}
	want := `owner_email: "\"a@example.net\" is in none of --mail-domains"; no mail goes there. ` +
		`processors.email: mail goes only to addresses in --mail-domains of the servers. ` +
		`processors.slack: the servers have no --slack-webhook for its team; nobody is told.`
	if got := j.warning(c); got != want {
		t.Errorf("warning %s, want %s", got, want)
	}
	c.cfg.Slack = map[string]string{"ops": "http://x"}
	j.OwnerEmail, j.Processors["email"]["emails"] = "", "a@example.org"
	if got := j.warning(c); got != "" {
		t.Errorf("warning %s, want none", got)
	}
}

// TestNotices_Overdue: a run that takes too long is told of while it goes on, as is a job without success; the leader
// says who it is and makes its heartbeat.
func TestNotices_Overdue(t *testing.T) {
	in := newInbox(t)
	beats := make(chan string, 10)
	heart := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { beats <- r.Method + r.URL.Path }))
	defer heart.Close()
	p := startServer(t, t.TempDir(), "--notify-webhook="+in.url, "--notify-on=overdue,leader", "--heartbeat-url="+heart.URL+"/beat")
	slow := shellJob("slow", "@manually", "sleep 60")
	slow.MaxRuntime = "1s"
	silent := shellJob("silent", "@manually", "true")
	silent.MaxSilence = "2s"
	p.must("POST", "/v1/jobs", slow, nil)
	p.must("POST", "/v1/jobs", silent, nil)
	p.must("POST", "/v1/jobs/slow/run", nil, nil)
	p.eventually("notices", func() bool { return len(in.taken()) == 3 })
	var texts []string
	for _, d := range in.all() {
		texts = append(texts, d.Text)
	}
	slices.Sort(texts)
	if diff := cmp.Diff([]string{"belfry: n1 leads", "silent is overdue: it has not succeeded for 2s",
		"slow is overdue on n1: it has been running for more than 1s"}, texts); diff != "" {
		t.Errorf("notices (-want +got):\n%s", diff)
	}
	if got := <-beats; got != "GET/beat" {
		t.Errorf("heartbeat %s", got)
	}
}
