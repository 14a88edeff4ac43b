// The api owns what clients see: the route table, JSON in and out, list
// parameters, and which error is which status. It decides nothing about jobs.
//
// It answers as Dkron's API document says, and where that is silent as Dkron
// was observed to answer; places that say "Differs:" do better on purpose.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"math"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"
)

const (
	keyBytesMax     = 255                    // of an Idempotency-Key
	upcomingMax     = 100                    // ticks that /v1/schedule computes
	auditPageMax    = 1_000                  // rows in one answer
	recentOutputMax = 4_000                  // bytes of each output in a list over all jobs
	printedPatience = 300 * time.Millisecond // for what runs has printed, in a list
	metadataMax     = 16                     // keys of metadata that a list of jobs is filtered by

	outcomeJobsMax = 100 // jobs of one request for outcomes
	outcomesShown  = 10  // executions of each

	statsDays    = 30 // days that /v1/stats shows, unless it is asked for up to
	statsDaysMax = 365

	restoreJobsMax  = 200_000
	restoreBytesMax = 256 << 20
	progressBytes   = 64 << 10 // of an upload that must come within readTimeout

	longAnswer         = 1 << 20 // bytes up to which an answer is sent at once
	longAnswersMax     = 16      // longer ones at once
	longAnswersOfToken = 4
	chunkBytes         = 256 << 10 // of an answer, each of which has
	chunkTime          = 30 * time.Second

	retryAfter    = "1"              // seconds, for who finds no leader
	readTimeout   = 30 * time.Second // of a request
	idleTimeout   = 2 * time.Minute  // of a kept-alive connection
	headerTimeout = 10 * time.Second // of a request's head: slow clients are normal, but not that slow
	headBytesMax  = 64 << 10         // of a request's head; many short lines of it take twenty times as much memory
)

//go:embed web
var web embed.FS

// api answers HTTP. Its fields are fixed once it serves, but for the last.
type api struct {
	node       string
	hosts      []string // names in Host that are this server's, besides loopback and addresses
	origins    []string // whose pages may use the API, besides our own
	store      *store
	scheduler  *scheduler
	members    func() []member
	leader     func() (member, bool)
	leading    func() bool
	leave      func(context.Context) error // takes this node out of its cluster, and stops it
	peers      func() []raftPeer
	removePeer func(ctx context.Context, id string) error
	relay      func(w http.ResponseWriter, r *http.Request, actor, request string) error // to the leader; of a node without state, to a server
	health     func() (problems, warnings []string)                                      // why reads or writes fail here, and what else is wrong, each with its remedy
	gauges     func() gauges                                                             // what the node's own numbers are

	acl bool   // requests need a token
	dir string // the data directory, which holds the bootstrap secret

	// output writes what a running execution has printed, and with follow what
	// it goes on to print; errUnknownExecution if its node knows it no more.
	output func(ctx context.Context, node string, execution int64, follow bool, w io.Writer) error
	// printed returns the end of what executions of a node have printed, as the node's executor does.
	printed func(ctx context.Context, node string, executions []int64) (map[int64][]byte, error)
	log     *slog.Logger

	stopping <-chan struct{} // closed when the node stops; nil: it does not
	copying  atomic.Bool     // a backup is under way
	long     longAnswers
	refusals refusals
	catching singleflight.Group // the question that caughtUp asks
}

// leaveRoute is the one write that is about the node itself, not the cluster.
const leaveRoute = "POST /v1/leave"

const (
	bootstrapRoute = "POST /v1/acl/bootstrap"
	healthRoute    = "GET /health"
	restoreRoute   = "POST /v1/restore"
	runRoute       = "POST /v1/jobs/{job}/run" // the other way to ask for POST /v1/jobs/{job}
	watchRoute     = "GET /v1/events"
	outputRoute    = "GET /v1/jobs/{job}/executions/{execution}/output"
)

// A route is an operation of the API.
type route struct {
	pattern    string // as http.ServeMux has it
	capability string // what its caller needs on its path, or one of the four other answers in acl.go
	handle     func(*http.Request) (*response, error)
}

// routes is the API. What is read as a whole is "read", what as rows is "list";
// other methods are as in Dkron: POST creates, PUT and PATCH update.
func (a *api) routes() []route {
	return []route{
		{"GET /v1/{$}", mayRead, a.status},
		{"GET /v1", mayRead, a.status},

		{"GET /v1/jobs", mayListJobs, a.listJobs},
		{"POST /v1/jobs", mayStoreJob, a.putJob},
		{"PATCH /v1/jobs", mayStoreJob, a.putJob},
		{"GET /v1/jobs/{job}", mayRead, a.showJob},
		{"PUT /v1/jobs/{job}", mayStoreJob, a.putJob},
		{"POST /v1/jobs/{job}", mayCreate, a.runJob},
		{runRoute, mayCreate, a.runJob},
		{"DELETE /v1/jobs/{job}", mayDelete, a.deleteJob},
		{"POST /v1/jobs/{job}/toggle", mayCreate, a.toggleJob},
		{restoreRoute, mayCreate, a.restore},
		{"GET /v1/jobs/{job}/executions", mayList, a.listExecutions},
		{"DELETE /v1/jobs/{job}/executions", mayDelete, a.deleteExecutions},
		{"GET /v1/jobs/{job}/executions/{execution}", mayRead, a.showExecution},

		{outputRoute, mayRead, a.showOutput},
		{"POST /v1/jobs/{job}/executions/{execution}/kill", mayCreate, a.killExecution},
		{"GET /v1/jobs/{job}/ticks", mayList, a.listTicks},
		{"GET /v1/jobs/{job}/targets", mayRead, a.targets},

		{"GET /v1/busy", mayList, a.busy},
		{"GET /v1/pause", mayRead, a.showPause},
		{"POST /v1/pause", mayCreate, a.pause},
		{"POST /v1/unpause", mayCreate, a.unpause},
		{"GET /v1/stats", mayRead, a.stats},
		{"GET /v1/schedule", mayRead, a.nextTicks},

		{"GET /v1/summary", mayRead, a.summary},
		{"GET /v1/executions", mayList, a.recentExecutions},
		{"GET /v1/outcomes", mayListJobs, a.outcomes},
		{"GET /v1/upcoming", mayList, a.upcoming},
		{watchRoute, mayListJobs, a.watch},

		{"GET /v1/members", mayList, a.listMembers},
		{"GET /v1/leader", mayRead, a.showLeader},
		{"GET /v1/isleader", mayRead, a.isLeader},
		{leaveRoute, mayCreate, a.leaveCluster},

		{"GET /v1/backup", mayRead, a.backup},
		{"GET /v1/raft/peers", mayList, a.listPeers},
		{"DELETE /v1/raft/peers/{id}", mayDelete, a.dropPeer},

		{healthRoute, noToken, a.showHealth},
		{"GET /metrics", mayRead, a.metrics},

		{"GET /v1/openapi.yaml", mayRead, a.openapi},

		{"GET /v1/audit", mayList, a.listAudit},

		{"GET /v1/acl/policies", mayList, a.listPolicies},
		{"GET /v1/acl/policies/{name}", mayRead, a.showPolicy},
		{"POST /v1/acl/policies/{name}", mayCreate, a.putPolicy},
		{"DELETE /v1/acl/policies/{name}", mayDelete, a.deletePolicy},
		{"GET /v1/acl/tokens", mayList, a.listTokens},
		{"POST /v1/acl/tokens", mayCreate, a.createToken},
		{"GET /v1/acl/tokens/{accessor}", mayRead, a.showToken},
		{"DELETE /v1/acl/tokens/{accessor}", mayDelete, a.deleteToken},
		{bootstrapRoute, noToken, a.bootstrap},
		{"GET /v1/acl/self", anyToken, a.self},
	}
}

// paths are those of the routes, as policies name them.
func (a *api) paths() []string {
	var list []string
	for _, route := range a.routes() {
		_, path, _ := strings.Cut(route.pattern, " ")
		list = append(list, strings.TrimSuffix(path, "/{$}"))
	}
	return list
}

// handler returns the whole HTTP side of the server: the API and the page.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range a.routes() {
		answer := a.answer(route.handle)
		switch {
		case route.pattern == leaveRoute:
			answer = a.leaving(answer)
		case !strings.HasPrefix(route.pattern, "GET "):
			answer = a.atLeader(answer)
		}
		answer = a.limited(route.bodyMax(), a.checked(route, answer))
		if route.pattern == healthRoute {
			answer = a.forFollowers(answer)
		}
		mux.Handle(route.pattern, answer)
	}
	servePage(mux)
	return a.guard(trimSlash(mux))
}

// under puts what clients see below a path, "" for the root. Nodes ask each
// other without it, so that each may have its own.
func under(prefix string, next http.Handler) http.Handler {
	if prefix == "" {
		return next
	}
	below := http.StripPrefix(prefix, next)
	mux := http.NewServeMux() // which leads from the path itself to what is below
	mux.HandleFunc(prefix+"/", func(w http.ResponseWriter, r *http.Request) {
		below.ServeHTTP(&prefixWriter{w, prefix}, r)
	})
	return mux
}

// prefixWriter puts the prefix in front of where an answer says that something is.
type prefixWriter struct {
	http.ResponseWriter
	prefix string
}

// Unwrap implements what http.ResponseController looks for.
func (w *prefixWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *prefixWriter) WriteHeader(status int) {
	if to := w.Header().Get("Location"); strings.HasPrefix(to, "/") {
		w.Header().Set("Location", w.prefix+to)
	}
	w.ResponseWriter.WriteHeader(status)
}

// guard stands between browsers and everything else. What another node has
// passed on was looked at where it came in.
func (a *api) guard(next http.Handler) http.Handler {
	var own http.CrossOriginProtection
	for _, origin := range a.origins {
		// An origin that the flag was refused for is not here; and one that is not trusted changes nothing.
		_ = own.AddTrustedOrigin(origin)
	}
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.countRefusal(r, refusedOrigin)
		http.Error(w, "this request comes from a page of another origin; --cors-origin names those whose pages may use the API", http.StatusForbidden)
	}))
	fromClient := a.checkHost(a.cors(own.Handler(next)))
	forwarded := a.checkHost(next)
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w := &pacedWriter{out, http.NewResponseController(out)}
		if _, ok := forwardedFrom(r.Context()); ok {
			forwarded.ServeHTTP(w, r)
		} else {
			fromClient.ServeHTTP(w, r)
		}
		w.extend() // for what is still to be flushed
	})
}

// cors lets pages of the origins in --cors-origin read answers and send what
// the API takes. Cookies have no meaning here, so none are allowed. Pages of
// other origins find no word of it.
func (a *api) cors(next http.Handler) http.Handler {
	if len(a.origins) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if !slices.Contains(a.origins, origin) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			w.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
			w.Header().Set("Access-Control-Allow-Headers", "Authorization, X-Dkron-Token, Content-Type, Idempotency-Key")
			w.Header().Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Access-Control-Expose-Headers", "X-Total-Count, X-Whom, Location, Belfry-Group, Belfry-Not-Run, Belfry-Older")
		next.ServeHTTP(w, r)
	})
}

// pageTypes are the files of web/ that make the page, by their endings.
var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// servePage adds the page, and the addresses that Dkron's has. Where those
// lead to is relative, so that it works behind a path prefix.
func servePage(mux *http.ServeMux) {
	files, _ := fs.ReadDir(web, "web") // it is embedded
	for _, f := range files {
		contentType, ok := pageTypes[path.Ext(f.Name())]
		if !ok {
			continue
		}
		doc, _ := fs.ReadFile(web, "web/"+f.Name())
		mux.Handle("GET /"+f.Name(), pageFile(doc, contentType))
		if f.Name() == "index.html" {
			mux.Handle("GET /{$}", pageFile(doc, contentType))
		}
	}
	for from, to := range map[string]string{"/dashboard": "./", "/ui": "./", "/ui/{$}": "../"} {
		mux.HandleFunc("GET "+from, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", to) // http.Redirect would make it absolute
			w.WriteHeader(http.StatusFound)
		})
	}
}

// pageFile serves a file of the page, compressed to who takes that. Browsers ask
// each time whether it is still the same, so that none mixes files of two versions.
func pageFile(doc []byte, contentType string) http.Handler {
	var small bytes.Buffer
	z := gzip.NewWriter(&small)
	z.Write(doc) // a buffer takes everything
	z.Close()
	tag := fmt.Sprintf("%x", sha256.Sum256(doc))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		h.Set("Vary", "Accept-Encoding")
		h.Set("ETag", `"`+tag+`"`)
		body := doc
		if takesGzip(r.Header.Get("Accept-Encoding")) {
			h.Set("ETag", `"`+tag+`-gzip"`)
			h.Set("Content-Encoding", "gzip")
			body = small.Bytes()
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}

// takesGzip reports whether an Accept-Encoding names gzip, and not with the
// weight 0, which means never.
func takesGzip(accept string) bool {
	for coding := range strings.SplitSeq(accept, ",") {
		name, weight, _ := strings.Cut(strings.ReplaceAll(coding, " ", ""), ";q=")
		if strings.EqualFold(name, "gzip") {
			q, err := strconv.ParseFloat(weight, 64)
			return weight == "" || err == nil && q > 0
		}
	}
	return false
}

// trimSlash redirects a path with a slash too many to the one without, if that
// exists, as upstream: for good where a GET asks, and else in a way that has
// the client send its body again.
func trimSlash(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		trimmed := strings.TrimRight(r.URL.Path, "/")
		// One that is not clean might lead elsewhere: "//name/" is a host to a browser.
		if _, pattern := mux.Handler(r); pattern != "" || trimmed == r.URL.Path || path.Clean(trimmed) != trimmed {
			mux.ServeHTTP(w, r)
			return
		}
		there := r.Clone(r.Context())
		there.URL.Path, there.URL.RawPath = trimmed, ""
		if _, pattern := mux.Handler(there); pattern == "" {
			mux.ServeHTTP(w, r)
			return
		}
		status := http.StatusTemporaryRedirect
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			status = http.StatusMovedPermanently
		}
		http.Redirect(w, r, there.URL.RequestURI(), status)
	})
}

// checkHost refuses requests whose Host is no name of this server. A page of
// somebody else's can point its own name at our address (DNS rebinding) and
// then read and write as one origin with us; it cannot do so with an address
// or with a name that is not its own. No browser leaves Host out, as HTTP/1.0
// may: a proxy does that looks whether the server is there. One that asks for
// /health may call it what it likes, and is told no more than yes or no.
func (a *api) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin") // a page elsewhere cannot even load it, as a script or an image
		w.Header().Set("Cache-Control", "no-store")                   // what one token reads, no cache may show to another
		own := a.ownHost(r.Host)
		if own {
			w.Header().Set("X-Whom", a.node)
		}
		if !own && r.URL.Path != "/health" {
			a.countRefusal(r, refusedHost)
			http.Error(w, fmt.Sprintf("this server is not called %q; use its address, or localhost, or start it with that name in --allowed-host", r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *api) ownHost(host string) bool {
	if host == "" {
		return true
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if net.ParseIP(strings.Trim(name, "[]")) != nil || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	for _, h := range a.hosts {
		if strings.EqualFold(name, h) {
			return true
		}
	}
	return false
}

// Why a request is not let in. The first says nothing of what was wrong with a
// token, for that would tell who guesses that there is one.
var (
	errUnauthenticated = problem{http.StatusUnauthorized, "this needs a valid token, in the header X-Dkron-Token or Authorization: Bearer; \"belfry acl token create\" makes one"}
	errNoACL           = problem{http.StatusConflict, "access control is off; start the servers with --acl"}
)

type callerKey struct{}

// callerOf returns who a request is. Without access control everybody may do
// everything.
func (a *api) callerOf(r *http.Request) *caller {
	if c, ok := r.Context().Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{all: !a.acl}
}

// checked lets through what a route's caller may ask. It stands before a write
// is passed on to the leader, which looks again: a node whose access control is
// off cannot speak for its clients.
func (a *api) checked(route route, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.acl {
			c, err := a.admit(route, r)
			if err != nil {
				a.fail(w, r, err)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
		}
		if !a.acl || route.pattern != healthRoute { // anybody may ask that
			letIn(r)
		}
		next.ServeHTTP(w, r)
	})
}

// admit says who a request is that may ask what it asks.
func (a *api) admit(route route, r *http.Request) (*caller, error) {
	c, err := a.authenticate(r)
	if err == nil {
		err = a.mayAsk(route, c, r)
	}
	return c, err
}

// sentSecret returns the secret that a request carries, "" if none.
func sentSecret(r *http.Request) string {
	if secret := r.Header.Get("X-Dkron-Token"); secret != "" {
		return secret
	}
	header := r.Header.Get("Authorization")
	if scheme, secret, ok := strings.Cut(header, " "); ok && strings.EqualFold(scheme, "Bearer") {
		return secret
	}
	return header
}

// clientAddr returns the address of a client, without its port, as the node saw
// it that was asked.
func clientAddr(r *http.Request) string {
	if from, ok := forwardedFrom(r.Context()); ok {
		return from.Client
	}
	addr, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return addr
}

// countRefusal counts a request that is not let in. Once a minute the log says
// that an address is refused: whoever probes fills neither the log nor the disk.
func (a *api) countRefusal(r *http.Request, reason string) {
	if addr := clientAddr(r); a.refusals.add(reason, addr, time.Now()) {
		a.log.Warn("requests from this address are refused; of others in the next minute only /metrics tells", "address", addr, "reason", reason, "method", r.Method, "path", r.URL.Path)
	}
}

// authenticate says who a request is; who sends no token is the zero caller.
func (a *api) authenticate(r *http.Request) (*caller, error) {
	secret := sentSecret(r)
	if secret == "" {
		return &caller{}, nil
	}
	hash, ok := hashSecret(secret)
	if !ok {
		return nil, errUnauthenticated
	}
	t, err := a.validToken(hash, time.Now().UnixNano())
	if from, _ := forwardedFrom(r.Context()); errors.Is(err, errNoToken) && !from.Final && !a.leading() {
		a.caughtUp(r)
		t, err = a.validToken(hash, time.Now().UnixNano())
	}
	if errors.Is(err, errNoToken) {
		return nil, errUnauthenticated
	}
	if err != nil {
		return nil, err
	}
	return a.newCaller(t)
}

// validToken returns the token whose secret has that hash, or errNoToken if
// there is none, or none any more.
func (a *api) validToken(hash [sha256.Size]byte, now int64) (token, error) {
	t, err := a.store.clients.tokenByHash(hash[:])
	if err == nil && (!sameHash(t.Hash, hash[:]) || !t.valid(now)) {
		err = errNoToken
	}
	return t, err
}

// caughtUp waits until this server has applied what the leader had when it was
// asked: a token that is unknown here may have been made a moment ago. All who
// wait share one question, so that bad tokens ask the leader for no more than
// one at a time. Where nobody leads, it returns at once.
func (a *api) caughtUp(r *http.Request) {
	ask := func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), leaderTimeout) // of all who wait
		defer cancel()
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, "/health?live", http.NoBody)
		if err != nil {
			return nil, err
		}
		q.RemoteAddr = r.RemoteAddr
		return nil, a.relay(discardWriter{http.Header{}}, q, actorAnonymous, newRequestID())
	}
	// A question that was under way may be older than the token.
	if _, err, shared := a.catching.Do("", ask); shared && err == nil {
		a.catching.Do("", ask)
	}
}

// forFollowers says to a server that asks, if this one leads, up to which log
// index that one must have applied to know what this one knows.
func (a *api) forFollowers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch from, passedOn := forwardedFrom(r.Context()); {
		case from.Final && !a.leading():
			a.fail(w, r, errNotLeader)
		case passedOn:
			next.ServeHTTP(&indexWriter{ResponseWriter: w, store: a.store}, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// newCaller returns what the bearer of a token may do. A policy that is gone
// grants nothing.
func (a *api) newCaller(t token) (*caller, error) {
	c := &caller{token: t, all: t.Type == tokenManagement}
	var policies []policy
	for _, name := range t.Policies {
		p, err := a.store.clients.policy(name)
		if err != nil && !errors.Is(err, errNoPolicy) {
			return nil, err
		}
		if err == nil {
			policies = append(policies, p)
		}
	}
	c.rules = parsedRules(policies)
	return c, nil
}

// mayAsk returns why a caller may not ask what a request asks, nil if it may.
func (a *api) mayAsk(route route, c *caller, r *http.Request) error {
	if route.capability == noToken {
		if route.pattern == bootstrapRoute {
			return a.checkBootstrap(c, r)
		}
		return nil
	}
	path := resource(route.pattern, r)
	switch {
	case c.token.Accessor == "":
		return errUnauthenticated
	case route.capability == anyToken:
		return nil
	case route.capability == mayListJobs:
		if len(c.jobGlobs()) > 0 || c.may(path, mayList) {
			return nil
		}
		return forbidden(path, mayList)
	case route.capability == mayStoreJob:
		return a.mayStoreJob(c, r)
	case !c.may(path, route.capability):
		return forbidden(path, route.capability)
	}
	return nil
}

func forbidden(path, capability string) error {
	return problem{http.StatusForbidden, fmt.Sprintf("no policy of this token grants %q on %s", capability, path)}
}

// resource is the path of a request as policies name it: that of its route,
// with names escaped. What ServeMux has made of the URL does not matter here.
func resource(pattern string, r *http.Request) string {
	if pattern == runRoute {
		pattern = strings.TrimSuffix(pattern, "/run")
	}
	_, path, _ := strings.Cut(pattern, " ")
	segments := strings.Split(strings.TrimSuffix(path, "/{$}"), "/")
	for i, s := range segments {
		if name, ok := strings.CutPrefix(s, "{"); ok {
			segments[i] = url.PathEscape(r.PathValue(strings.TrimSuffix(name, "}")))
		}
	}
	return strings.Join(segments, "/")
}

// mayStoreJob looks into the body for the job, reading it as putJob does, so
// that both see the same name. To hang a job on a parent is to learn of it.
func (a *api) mayStoreJob(c *caller, r *http.Request) error {
	if c.all {
		return nil
	}
	doc, err := body(r)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(doc))
	j, err := decodeJob(doc, job{Concurrency: concurrencyAllow})
	if err != nil {
		return badInput{err}
	}
	path := jobPath(j.Name)
	switch parent := jobPath(j.ParentJob); {
	case !c.mayStore(j.Name):
		return forbidden(path, mayUpdate)
	case r.URL.Query().Has("runoncreate") && !c.may(path, mayCreate):
		return forbidden(path, mayCreate)
	case j.ParentJob != "" && !c.mayStore(j.ParentJob):
		return forbidden(parent, mayUpdate)
	}
	return nil
}

// checkBootstrap wants the secret of this server's data directory, unless a
// node has looked at it that passed the request on. The caller is then one who
// has it.
func (a *api) checkBootstrap(c *caller, r *http.Request) error {
	c.token.Accessor = actorBootstrap
	if from, ok := forwardedFrom(r.Context()); ok && from.Actor == actorBootstrap {
		return nil
	}
	doc, err := body(r)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(doc))
	var sent struct{ Secret string }
	if err := decodeStrict(doc, &sent); err != nil {
		return badRequest("Secret: must be what the file %s in the server's data directory holds: %v", bootstrapFile, err)
	}
	got, ok := hashSecret(sent.Secret)
	want, err := readBootstrapSecret(a.dir)
	if err != nil || !ok || !sameHash(got[:], want[:]) {
		return problem{http.StatusForbidden, fmt.Sprintf("Secret: is not what the file %s in this server's data directory holds; there is one while no management token exists and the server runs with --acl", bootstrapFile)}
	}
	return nil
}

// response is what a handler answers. A nil body is none.
type response struct {
	status int
	header map[string]string
	body   any             // encoded as JSON
	kept   json.RawMessage // or JSON that is there already, as the answer that was given before
	rows   documents       // or a list, which is sent as it is read

	// serve writes the answer itself, status and all. What it returns before
	// its first byte is answered like any error; after that it returns nil.
	serve func(w http.ResponseWriter) error
}

// answer turns what a handler returns into HTTP: the one place that knows how.
func (a *api) answer(handle func(*http.Request) (*response, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
			a.fail(w, r, badRequest("the query cannot be read: %v; write & between parameters, and in them %%XX for what is no letter or digit", err))
			return
		}
		res, err := handle(r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		for k, v := range res.header {
			w.Header().Set(k, v)
		}
		if res.serve != nil {
			if err := res.serve(w); err != nil {
				a.fail(w, r, err)
			}
			return
		}
		if err := a.send(w, r, res); err != nil {
			a.fail(w, r, err)
		}
	})
}

// documents are the rows of a list as JSON.
type documents = iter.Seq2[json.RawMessage, error]

// shownAs yields rows in the form that show gives them.
func shownAs[T any](rows iter.Seq2[T, error], show func(T) (json.RawMessage, error)) documents {
	return func(yield func(json.RawMessage, error) bool) {
		for row, err := range rows {
			var doc json.RawMessage
			if err == nil {
				doc, err = show(row)
			}
			if !yield(doc, err) || err != nil {
				return
			}
		}
	}
}

// send answers with JSON. An error is from before the first byte; what fails
// later breaks the answer off, so that nobody takes a part for the whole.
func (a *api) send(w http.ResponseWriter, r *http.Request, res *response) error {
	out := &answerWriter{ResponseWriter: w, api: a, token: a.callerOf(r).token.Accessor, status: res.status, held: buffers.Get().(*bytes.Buffer)}
	defer out.close()
	_, pretty := r.URL.Query()["pretty"]
	err := writeAnswer(out, res, pretty)
	if err == nil {
		err = out.end()
	}
	if err != nil && out.long {
		panic(http.ErrAbortHandler)
	}
	return err
}

// writeAnswer writes a document as json.Indent would have it, or without spaces.
func writeAnswer(w io.Writer, res *response, pretty bool) error {
	write := func(prefix string, doc []byte) error {
		if pretty {
			var out bytes.Buffer
			if json.Indent(&out, doc, prefix, indent) == nil {
				doc = out.Bytes()
			}
		}
		_, err := w.Write(doc)
		return err
	}
	switch {
	case res.kept != nil:
		return write("", res.kept)
	case res.rows == nil:
		doc, err := json.Marshal(res.body)
		if err != nil {
			return err
		}
		return write("", doc)
	}
	begin, between, end := "[", ",", "]"
	if pretty {
		begin, between, end = "[\n"+indent, ",\n"+indent, "\n]"
	}
	next, comma, none := []byte(begin), []byte(between), true
	for doc, err := range res.rows {
		if err == nil {
			_, err = w.Write(next)
		}
		if err == nil {
			err = write(indent, doc)
		}
		if err != nil {
			return err
		}
		next, none = comma, false
	}
	if none {
		end = "[]"
	}
	_, err := io.WriteString(w, end)
	return err
}

const indent = "    " // as upstream

// answerWriter holds an answer back until it is whole, or long: then it is sent
// as it comes, if there are not too many of these already.
type answerWriter struct {
	http.ResponseWriter
	api    *api
	token  string // accessor of the caller's, "": none
	status int
	held   *bytes.Buffer
	long   bool // it has begun
}

func (w *answerWriter) Write(p []byte) (int, error) {
	if w.held.Write(p); w.held.Len() <= longAnswer && !w.long || w.held.Len() < chunkBytes {
		return len(p), nil
	}
	if !w.long {
		if !w.api.long.enter(w.token) {
			return 0, errLongAnswers
		}
		w.long = true
		w.begin()
	}
	_, err := w.held.WriteTo(w.ResponseWriter)
	return len(p), err
}

func (w *answerWriter) begin() {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(w.status)
}

// end sends what is held.
func (w *answerWriter) end() error {
	if !w.long {
		w.Header().Set("Content-Length", strconv.Itoa(w.held.Len()))
		w.begin()
	}
	_, err := w.held.WriteTo(w.ResponseWriter)
	if !w.long {
		return nil // an error is the client's, who has gone
	}
	return err
}

func (w *answerWriter) close() {
	if w.long {
		w.api.long.leave(w.token)
		return
	}
	w.held.Reset()
	buffers.Put(w.held)
}

// buffers are of former answers, none of them long.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// errLongAnswers is the answer to one long answer too many.
var errLongAnswers = problem{http.StatusServiceUnavailable, fmt.Sprintf(
	"the answer is longer than 1 MiB, and %d of these are on their way already, or %d with this token; ask for less with _start and _end, or later", longAnswersMax, longAnswersOfToken)}

// longAnswers counts those that are being sent.
type longAnswers struct {
	mu  sync.Mutex
	all int            // guarded by mu
	of  map[string]int // by accessor; guarded by mu
}

func (l *longAnswers) enter(token string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == longAnswersMax || token != "" && l.of[token] == longAnswersOfToken {
		return false
	}
	if l.of == nil {
		l.of = map[string]int{}
	}
	l.all++
	l.of[token]++
	return true
}

func (l *longAnswers) leave(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[token]--; l.of[token] == 0 {
		delete(l.of, token)
	}
}

// pacedWriter gives each part of an answer its time, so that a client who does not
// read is given up, and a slow one is not.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Unwrap implements what http.ResponseController looks for.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// extend begins the time of a part. Where there is no deadline none is moved.
func (w *pacedWriter) extend() { _ = w.control.SetWriteDeadline(time.Now().Add(chunkTime)) }

func (w *pacedWriter) WriteHeader(status int) {
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *pacedWriter) Write(p []byte) (n int, err error) {
	for part := range slices.Chunk(p, chunkBytes) {
		w.extend()
		m, err := w.ResponseWriter.Write(part)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// atLeader has a write done by the leader, wherever it came in. Where another
// server passed it on, the answer says up to which log index that one must
// have applied before its client sees it.
func (a *api) atLeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, passedOn := forwardedFrom(r.Context())
		switch {
		case a.leading() && passedOn:
			next.ServeHTTP(&indexWriter{ResponseWriter: w, store: a.store}, r)
		case a.leading():
			next.ServeHTTP(w, r)
		case from.Final:
			a.fail(w, r, errNotLeader)
		default:
			req, err := a.request(r)
			if err == nil {
				err = a.relay(w, r, req.Actor, req.ID)
			}
			if err != nil {
				a.fail(w, r, err)
			}
		}
	})
}

// indexWriter adds to an answer the log index that is applied when its head is
// written, which is not before that of the write.
type indexWriter struct {
	http.ResponseWriter
	store *store
}

// Unwrap implements what http.ResponseController looks for.
func (w *indexWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *indexWriter) WriteHeader(status int) {
	w.Header().Set(headerIndex, strconv.FormatUint(w.store.applied.Load(), 10))
	w.ResponseWriter.WriteHeader(status)
}

// problem is an error that the caller can do something about.
type problem struct {
	status  int
	message string
}

func (p problem) Error() string { return p.message }

// badRequest is a problem of what was sent.
func badRequest(format string, args ...any) error {
	return problem{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// fail answers an error. What only we can mend is logged, and outside it is an
// internal error. Something that is not there has no text, as upstream.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := a.problem(err)
	if r.ContentLength != 0 && (p.status == http.StatusUnauthorized || p.status == http.StatusForbidden) {
		w.Header().Set("Connection", "close") // or net/http would first wait for the body
	}
	switch p.status {
	case http.StatusInternalServerError:
		a.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		p.message = "internal error; the server's log says more"
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfter)
	case http.StatusForbidden:
		a.countRefusal(r, refusedForbidden)
	case http.StatusUnauthorized:
		a.countRefusal(r, refusedToken)
		w.Header().Set("WWW-Authenticate", `Bearer realm="belfry"`)
	case http.StatusNotFound:
		w.WriteHeader(p.status)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(p.status)
	io.WriteString(w, p.message)
}

// problem says which status an error is.
func (a *api) problem(err error) problem {
	var p problem
	var bad badInput
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &large):
		return problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", large.Limit)}
	case errors.As(err, &bad):
		return problem{http.StatusBadRequest, "the job is invalid: " + err.Error()}
	case errors.Is(err, errNoJob), errors.Is(err, errNoExecution), errors.Is(err, errNoPolicy), errors.Is(err, errNoToken), errors.Is(err, errNoServer):
		return problem{http.StatusNotFound, ""}
	case errors.Is(err, errParent), errors.Is(err, errParentCycle), errors.Is(err, errChildren), errors.Is(err, errAncestors):
		return problem{http.StatusBadRequest, err.Error()}
	case errors.Is(err, errJobDisabled), errors.Is(err, errNoNode), errors.Is(err, errHasChildren), errors.Is(err, errFinished), errors.Is(err, errBuiltIn), errors.Is(err, errManaged), errors.Is(err, errTokenShown), errors.Is(err, errConflict), errors.Is(err, errUndecided),
		errors.Is(err, errAliveVoter), errors.Is(err, errLastVoter):
		return problem{http.StatusConflict, err.Error()}
	case errors.Is(err, errKeyUsed):
		return problem{http.StatusUnprocessableEntity, err.Error()}
	case errors.Is(err, errTooLarge):
		return problem{http.StatusRequestEntityTooLarge, err.Error()}
	case errors.Is(err, errUnknown): // whatever else it is
		return problem{http.StatusGatewayTimeout, err.Error()}
	case errors.Is(err, errPaused), errors.Is(err, errRestoring), errors.Is(err, errBrokenOff), errors.Is(err, errNotLeader), errors.Is(err, errBusy), errors.Is(err, context.Canceled):
		return problem{http.StatusServiceUnavailable, err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return problem{http.StatusGatewayTimeout, err.Error()}
	}
	return problem{status: http.StatusInternalServerError}
}

// request makes of r what a write needs: who asks, and the id under which it
// is done once. Keys are the client's, for one method and path (the IETF draft
// on Idempotency-Key); without one the write gets an id of its own.
func (a *api) request(r *http.Request) (request, error) {
	req := request{Actor: actorAnonymous, Address: clientAddr(r), ID: newRequestID()}
	if from, ok := forwardedFrom(r.Context()); ok {
		req.Actor, req.ID = from.Actor, from.Request
	}
	c := a.callerOf(r)
	if a.acl {
		req.Actor = c.token.Accessor
	}
	key := r.Header.Get("Idempotency-Key")
	if len(key) > keyBytesMax {
		return req, badRequest("Idempotency-Key: must not be longer than %d bytes", keyBytesMax)
	}
	if key != "" {
		req.ID = r.Method + " " + r.URL.Path + " " + key
		if a.acl { // nobody is answered what was another's answer
			req.ID = req.Actor + " " + req.ID
		}
		req.Keep = func(row *jobRow) string {
			doc, err := shown(c, row)
			if err != nil {
				return ""
			}
			return string(doc)
		}
	}
	return req, nil
}

// newRequestID returns an id that nobody else has. It begins with the time, so
// that the ids of one moment lie together in the store's index.
func newRequestID() string {
	return strconv.FormatInt(time.Now().UnixMicro(), 36) + crand.Text()
}

// shown is a job as a caller sees it: who may not change it is not shown what
// looks secret.
func shown(c *caller, row *jobRow) (json.RawMessage, error) {
	doc, err := json.Marshal(row)
	if err == nil && row != nil {
		doc, err = jobShown(c, doc)
	}
	return doc, err
}

// jobResponse answers a write with its job, or with what it was answered when
// it was sent before.
func (a *api) jobResponse(r *http.Request, status int, row *jobRow, res applied, header map[string]string) (*response, error) {
	out := &response{status: status, header: header}
	if res.repeated() && res.Answer != "" {
		out.kept = json.RawMessage(res.Answer)
		return out, nil
	}
	var err error
	out.kept, err = shown(a.callerOf(r), row)
	return out, err
}

// plain refuses a body that is sent in another form than it has.
func plain(r *http.Request) error {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return problem{http.StatusUnsupportedMediaType, fmt.Sprintf("Content-Encoding: %q is not taken; send the body as it is", coding)}
	}
	return nil
}

// bodyMax is how many bytes a route takes.
func (r route) bodyMax() int64 {
	switch r.pattern {
	case restoreRoute:
		return restoreBytesMax
	case "POST /v1/acl/policies/{name}":
		return policyBytesMax
	case "POST /v1/acl/tokens", bootstrapRoute:
		return tokenBytesMax
	}
	return jobBytesMax // also where none is read
}

// limited refuses a body that is larger than its route takes before anything is
// done with it: at once where it says how large it is.
func (a *api) limited(limit int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > limit {
			a.fail(w, r, &http.MaxBytesError{Limit: limit})
			return
		}
		if r.Body != nil {
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		next.ServeHTTP(w, r)
	})
}

// body reads a whole request body, which limited has bound. One that breaks off
// is the client's fault.
func body(r *http.Request) ([]byte, error) {
	if err := plain(r); err != nil {
		return nil, err
	}
	doc, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	if err != nil && !errors.As(err, &large) {
		err = badRequest("the body breaks off: %v", err)
	}
	if doc = bytes.TrimPrefix(doc, byteOrderMark); err == nil && !utf8.Valid(doc) {
		err = errNotUTF8
	}
	return doc, err
}

// byteOrderMark is what some editors put in front of UTF-8.
var byteOrderMark = []byte("\ufeff")

var errNotUTF8 = problem{http.StatusBadRequest, "the body must be UTF-8; save or convert it as that"}

// putJob stores a job, and runs it if the query says so. Whether it could be run
// then is no matter of the answer's status, which is of the job.
func (a *api) putJob(r *http.Request) (*response, error) {
	if a.store.paused.Load() {
		return nil, errPaused
	}
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	body, err := body(r)
	if err != nil {
		return nil, err
	}
	j, err := decodeJob(body, job{Concurrency: concurrencyAllow})
	if err != nil {
		return nil, badInput{err}
	}
	if name := r.PathValue("job"); name != "" && name != j.Name {
		return nil, badRequest("name: %q is not the %q of the path", j.Name, name)
	}
	row, res, err := a.scheduler.put(r.Context(), req, j)
	if err != nil {
		return nil, err
	}
	header := jobLocation(j.Name)
	if w := j.warning(); w != "" {
		header[headerWarning] = w
		if !res.repeated() {
			a.log.Warn("a job was stored with a warning", "job", j.Name, "warning", w)
		}
	}
	if r.URL.Query().Has("runoncreate") {
		req.ID, req.Keep = "run of "+req.ID, nil // no other id begins so: they begin with a method, a token or a time
		_, run, err := a.scheduler.runNow(r.Context(), req, j.Name)
		switch {
		case err != nil && a.problem(err).status >= http.StatusInternalServerError:
			return nil, fmt.Errorf("the job was stored; its run: %w", err)
		case err != nil:
			header["Belfry-Not-Run"] = err.Error()
		case run.Refused != "":
			header["Belfry-Not-Run"] = run.Refused
		}
	}
	return a.jobResponse(r, http.StatusCreated, row, res, header)
}

// misfit finds in v, a JSON value that is to be nested maps of strings of that depth, what is something else.
func misfit(v any, at string, depth int) (string, any) {
	m, ok := v.(map[string]any)
	if _, text := v.(string); v == nil || depth == 0 && text {
		return "", nil
	}
	if depth == 0 || !ok {
		return at, v
	}
	for _, k := range sortedKeys(m) {
		if p, v := misfit(m[k], at+"."+k, depth-1); p != "" {
			return p, v
		}
	}
	return "", nil
}

// typeError says what does not fit, and what to write instead where a map of strings is wanted.
func typeError(doc []byte, err *json.UnmarshalTypeError) error {
	field, _, _ := strings.Cut(err.Field, ".")
	var fields map[string]any
	if depth := map[string]int{"tags": 1, "metadata": 1, "executor_config": 1, "processors": 2}[field]; depth > 0 && json.Unmarshal(doc, &fields) == nil {
		switch at, v := misfit(fields[field], field, depth); v := v.(type) {
		case nil:
		case bool:
			return fmt.Errorf(`%.80s: a JSON bool does not fit here; write "%t"`, at, v)
		case float64:
			return fmt.Errorf("%.80s: a JSON number does not fit here; write it in quotes", at)
		default:
			kind := map[reflect.Kind]string{reflect.Slice: "array", reflect.Map: "object", reflect.String: "string"}[reflect.TypeOf(v).Kind()]
			return fmt.Errorf("%.80s: a JSON %s does not fit here", at, kind)
		}
	}
	return fmt.Errorf("%s: a JSON %s does not fit here", err.Field, err.Value)
}

// headerWarning says what of a job was stored and has no effect.
const headerWarning = "Belfry-Warning"

// jobLocation is the header that says where a job is. Differs: upstream
// appends the name to the request URI, query and all.
func jobLocation(name string) map[string]string {
	return map[string]string{"Location": "/v1/jobs/" + url.PathEscape(name)}
}

func (a *api) showJob(r *http.Request) (*response, error) {
	held, err := a.store.docs.one(a.store, r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	header := map[string]string{}
	if held.warning != "" {
		header[headerWarning] = held.warning
	}
	doc, err := jobShown(a.callerOf(r), held.doc)
	return &response{status: http.StatusOK, kept: doc, header: header}, err
}

func (a *api) deleteJob(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	row, res, err := a.scheduler.delete(r.Context(), req, r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	return a.jobResponse(r, http.StatusOK, row, res, nil)
}

func (a *api) toggleJob(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	row, res, err := a.scheduler.toggle(r.Context(), req, r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	return a.jobResponse(r, http.StatusOK, row, res, jobLocation(r.PathValue("job")))
}

// runJob starts a job and answers at once, with the job as it was before and
// the group of the run. Differs: upstream answers when the run has ended.
func (a *api) runJob(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	row, res, err := a.scheduler.runNow(r.Context(), req, r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	if res.Refused != "" {
		return nil, problem{http.StatusConflict, res.Refused}
	}
	header := jobLocation(r.PathValue("job"))
	header["Belfry-Group"] = strconv.FormatInt(key(cmp.Or(res.First, res.Index), 0), 10)
	return a.jobResponse(r, http.StatusAccepted, row, res, header)
}

// restore stores the jobs of an uploaded file, all or none, and answers with a
// line for each. It reads in a stream, so that its memory grows with the names in
// the file only.
func (a *api) restore(r *http.Request) (*response, error) {
	if a.store.paused.Load() {
		return nil, errPaused
	}
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		control := http.NewResponseController(w)
		file, err := uploadedFile(r)
		if err != nil {
			return err
		}
		// A large file takes longer than other requests may, for as long as
		// it keeps coming. Where there is no deadline none is moved.
		jobs := uploadedJobs(file, func() { _ = control.SetReadDeadline(time.Now().Add(readTimeout)) })
		warned, first := 0, ""
		done, err := a.scheduler.restore(r.Context(), req, func(yield func(job, error) bool) {
			for j, err := range jobs {
				if err == nil && j.warning() != "" {
					warned, first = warned+1, cmp.Or(first, url.PathEscape(j.Name))
				}
				if !yield(j, err) {
					return
				}
			}
		})
		if err != nil {
			return err
		}
		if warned > 0 {
			w.Header().Set(headerWarning, fmt.Sprintf("%d jobs have a warning, which GET /v1/jobs/{job} says; the first is %s.", warned, first))
			a.log.Warn("jobs were restored with a warning, which their pages show", "jobs", warned, "first", first)
		}
		names, err := a.store.clients.stagedNames(done.ID)
		if err == nil && len(names) != done.Jobs {
			err = errBrokenOff
		}
		if err != nil {
			panic(http.ErrAbortHandler) // it is done, and nobody must take a part of its answer for the whole
		}
		line := func(part []string) ([]json.RawMessage, error) {
			doc, err := json.Marshal("success create " + part[0])
			return []json.RawMessage{doc}, err
		}
		return a.send(w, r, &response{status: http.StatusOK, rows: inParts(names, 1, line)})
	}}, nil
}

// uploadedFile returns the part "file" of a form.
func uploadedFile(r *http.Request) (io.Reader, error) {
	if err := plain(r); err != nil {
		return nil, err
	}
	form, err := r.MultipartReader()
	for err == nil {
		var part *multipart.Part
		if part, err = form.NextPart(); err == nil && part.FormName() == "file" {
			return part, nil
		}
	}
	if errors.As(err, new(*http.MaxBytesError)) {
		return nil, err
	}
	return nil, badRequest("the body must be multipart/form-data with a part \"file\": %v", err)
}

// uploadedJobs yields the jobs of a JSON array, and ends with the first error.
// It holds one job at a time. progress is called now and then while it reads.
func uploadedJobs(file io.Reader, progress func()) iter.Seq2[job, error] {
	return func(yield func(job, error) bool) {
		src := &jobReader{src: file, progress: progress}
		text := bufio.NewReader(src)
		if mark, _ := text.Peek(len(byteOrderMark)); bytes.Equal(mark, byteOrderMark) {
			text.Discard(len(mark)) // cannot fail
		}
		d := json.NewDecoder(text)
		if t, err := d.Token(); err != nil || t != json.Delim('[') {
			yield(job{}, uploadError(err, "must hold a JSON array of jobs"))
			return
		}
		for n := 0; d.More(); n++ {
			var doc json.RawMessage
			src.sinceJob = 0
			if n == restoreJobsMax {
				yield(job{}, problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("a file may hold %d jobs at the most; split it", restoreJobsMax)})
				return
			}
			if err := d.Decode(&doc); err != nil {
				yield(job{}, uploadError(err, fmt.Sprintf("is no JSON at job %d", n+1)))
				return
			}
			j, err := decodeJob(doc, job{})
			if err == nil && !utf8.Valid(doc) {
				err = errors.New("must be UTF-8; save or convert the file as that")
			}
			if err != nil {
				err = badInput{fmt.Errorf("job %d of the file: %w", n+1, err)}
			}
			if !yield(j, err) || err != nil {
				return
			}
		}
		if _, err := d.Token(); err != nil {
			yield(job{}, uploadError(err, "must end with the end of the array"))
			return
		}
		if _, err := d.Token(); err != io.EOF {
			yield(job{}, uploadError(err, "must hold nothing behind the array"))
		}
	}
}

// uploadError is what to answer where reading a file of jobs ended early.
func uploadError(err error, why string) error {
	switch {
	case errors.As(err, new(*http.MaxBytesError)), errors.As(err, new(problem)):
		return err
	case err == nil:
		return badRequest("file: %s", why)
	}
	return badRequest("file: %s: %v", why, err)
}

// jobReader reads a file of jobs and ends a job that goes on for too long.
type jobReader struct {
	src       io.Reader
	progress  func()
	sinceJob  int // bytes read since a job began; reading ahead counts for the one before
	sinceCall int // bytes read since progress was called
}

func (r *jobReader) Read(p []byte) (int, error) {
	if r.sinceJob > jobBytesMax {
		return 0, problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("a job of the file is larger than %d bytes", jobBytesMax)}
	}
	n, err := r.src.Read(p)
	r.sinceJob += n
	if r.sinceCall += n; r.sinceCall >= progressBytes {
		r.sinceCall = 0
		r.progress()
	}
	return n, err
}

func (a *api) listJobs(r *http.Request) (*response, error) {
	q := r.URL.Query()
	f := jobFilter{Text: q.Get("q"), Status: q.Get("status"), Disabled: q.Get("disabled"), Executor: q.Get("executor"), Sort: q.Get("_sort"), Desc: q.Get("_order") == "DESC", Metadata: map[string]string{}}
	if _, ok := jobOrder[f.Sort]; !ok {
		return nil, badRequest("_sort: a list of jobs has no field %q to be sorted by", f.Sort)
	}
	for k, v := range q {
		if name, ok := strings.CutPrefix(k, "metadata["); ok && strings.HasSuffix(name, "]") {
			f.Metadata[strings.TrimSuffix(name, "]")] = v[0]
		}
	}
	if len(f.Metadata) > metadataMax {
		return nil, badRequest("metadata[key]: a list of jobs can be filtered by %d keys at once, not by %d; leave some out", metadataMax, len(f.Metadata))
	}
	start, end, err := page(q)
	if err != nil {
		return nil, err
	}
	c := a.callerOf(r)
	if f.Sort == "executor_config" && !c.mayStoreAll() {
		return nil, problem{http.StatusForbidden, "_sort: the order of executor_config would give away what is hidden in it from this token"}
	}
	if !c.all {
		f.Globs = c.jobGlobs()
	}
	docs, total, err := a.store.jobs(f, start, end)
	show := func(doc json.RawMessage) (json.RawMessage, error) { return jobShown(c, doc) }
	return &response{status: http.StatusOK, header: count(total), rows: shownAs(docs, show)}, err
}

// jobShown is the document of a job as a caller sees it.
func jobShown(c *caller, doc json.RawMessage) (json.RawMessage, error) {
	var row struct {
		Name string `json:"name"`
	}
	if c.all {
		return doc, nil
	}
	if err := json.Unmarshal(doc, &row); err != nil || c.mayStore(row.Name) {
		return doc, err
	}
	return hideSecrets(doc)
}

// page reads which part of a list is asked for: rows [start, end). As
// upstream, a bound that is not given is no bound, and one that is no number
// is 0; a client that means something else gets an empty list.
func page(q url.Values) (start, end int, err error) {
	end = math.MaxInt32
	for _, b := range []struct {
		name  string
		bound *int
	}{{"_start", &start}, {"_end", &end}} {
		if !q.Has(b.name) {
			continue
		}
		if *b.bound, err = strconv.Atoi(q.Get(b.name)); err != nil {
			*b.bound = 0
		}
		if *b.bound < 0 || *b.bound > math.MaxInt32 {
			return 0, 0, badRequest("%s: must lie between 0 and %d", b.name, math.MaxInt32)
		}
	}
	if q.Has("_start") && q.Has("_end") && start > end {
		return 0, 0, badRequest("_end: must not lie before _start")
	}
	return start, end, nil
}

// count is the header with the number of all rows of a list.
func count(n int) map[string]string {
	return map[string]string{"X-Total-Count": strconv.Itoa(n)}
}

// executionView is an execution as clients see it.
type executionView struct {
	ID              string    `json:"id"`
	JobName         string    `json:"job_name"`
	StartedAt       time.Time `json:"started_at"`
	FinishedAt      time.Time `json:"finished_at"`
	Success         bool      `json:"success"`
	Output          string    `json:"output,omitempty"`
	OutputTruncated *bool     `json:"output_truncated,omitempty"`
	NodeName        string    `json:"node_name"`
	Group           int64     `json:"group"`
	Attempt         int       `json:"attempt"`

	Reason        string    `json:"reason,omitempty"`         // ours: why it failed, which is in the output too
	Outcome       string    `json:"outcome"`                  // ours: also says interrupted, lost and killed; empty while it runs
	Cause         string    `json:"cause"`                    // ours: tick, child, retry or hand
	ScheduledAt   time.Time `json:"scheduled_at"`             // ours: when the tick fell due, or the run was asked for
	OutputDropped int64     `json:"output_dropped,omitempty"` // ours: bytes before those that were kept

	ExitCode    *int    `json:"exit_code,omitempty"`         // ours: of the first process, if it exited by itself
	Signal      string  `json:"signal,omitempty"`            // ours: which ended that process
	CPUSeconds  float64 `json:"cpu_seconds,omitempty"`       // ours: of it and the children that it waited for
	MemoryBytes int64   `json:"peak_memory_bytes,omitempty"` // ours: of the largest of them
}

// view shows an execution with its times in a zone.
func (e *executionRow) view(zone *time.Location) executionView {
	v := executionView{
		ID: executionName(e.ID, e.Node), JobName: e.JobName, StartedAt: timeOf(e.Started).In(zone), Success: e.Outcome == outcomeSuccess,
		Output: string(e.Output), Reason: strings.TrimSpace(string(e.Reason)), NodeName: e.Node, Group: e.Group, Attempt: e.Attempt,
		Outcome: e.Outcome, Cause: e.Cause, ScheduledAt: timeOf(e.Due).In(zone), OutputDropped: e.Dropped,
		ExitCode: e.Process.ExitCode, Signal: e.Process.Signal, CPUSeconds: time.Duration(e.Process.CPU).Seconds(), MemoryBytes: e.Process.Memory,
	}
	if e.Finished != 0 {
		v.FinishedAt = timeOf(e.Finished).In(zone)
	}
	return v
}

// addPrinted puts the last bytes of what runs has printed so far, at most outputMax and printedBytesMax of each, into rows
// that have no output yet. Nodes are asked side by side, each once; what one does not say in time stays empty.
func (a *api) addPrinted(ctx context.Context, list []executionRow, outputMax int) {
	running := map[string][]int64{} // by node
	for _, e := range list {
		if e.Finished == 0 && outputMax > 0 {
			running[e.Node] = append(running[e.Node], e.ID)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, printedPatience)
	defer cancel()
	var nodes sync.WaitGroup
	var mu sync.Mutex
	printed := map[int64][]byte{} // guarded by mu
	for node, ids := range running {
		nodes.Go(func() {
			part, err := a.printed(ctx, node, ids)
			if err != nil {
				return // it may be down, and the rest is as useful without it
			}
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(printed, part)
		})
	}
	nodes.Wait()
	for i := range list {
		if output, ok := printed[list[i].ID]; ok {
			list[i].Output, list[i].OutputSize = output, len(output)
			list[i].cut(min(outputMax, printedBytesMax))
		}
	}
}

// listExecutions answers with times in the zone of the job, newest first, as
// upstream does.
func (a *api) listExecutions(r *http.Request) (*response, error) {
	q := r.URL.Query()
	if _, ok := executionOrder[q.Get("_sort")]; !ok {
		return nil, badRequest("_sort: a list of executions has no field %q to be sorted by", q.Get("_sort"))
	}
	start, end, err := page(q)
	if err != nil {
		return nil, err
	}
	limit, err := strconv.Atoi(q.Get("output_size_limit"))
	if err != nil || limit < 0 {
		limit = outputBytesMax
	}
	row, err := a.store.clients.job(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	list, total, err := a.store.clients.executions(row.version.ID, q.Get("_sort"), !strings.EqualFold(q.Get("_order"), "ASC"), start, end)
	if err != nil {
		return nil, err
	}
	a.addPrinted(r.Context(), list, limit)
	zone := a.zoneOf(row)
	show := func(e executionRow) (json.RawMessage, error) {
		truncated := e.OutputSize > len(e.Output)
		v := e.view(zone)
		v.OutputTruncated = &truncated
		return json.Marshal(v)
	}
	return &response{status: http.StatusOK, header: count(total), rows: shownAs(a.store.clients.withOutputs(list, limit), show)}, nil
}

// zoneOf returns the zone of a job; UTC if this server does not know it.
func (a *api) zoneOf(row *jobRow) *time.Location {
	j := job{Timezone: row.Timezone}
	zone, err := loadZone(j.zone(a.scheduler.timezone()))
	if err != nil {
		return time.UTC
	}
	return zone
}

func (a *api) showExecution(r *http.Request) (*response, error) {
	e, err := a.execution(r)
	if err != nil {
		return nil, err
	}
	list := []executionRow{e}
	a.addPrinted(r.Context(), list, outputBytesMax)
	return &response{status: http.StatusOK, body: list[0].view(time.UTC)}, nil
}

// execution returns the execution that the path names.
func (a *api) execution(r *http.Request) (executionRow, error) {
	row, err := a.store.clients.job(r.PathValue("job"))
	if err != nil {
		return executionRow{}, err
	}
	e, err := a.anyExecution(r)
	if err == nil && e.JobID != row.version.ID {
		err = errNoExecution
	}
	return e, err
}

// anyExecution is execution, also of a job that was deleted: what such a job
// still runs can be killed.
func (a *api) anyExecution(r *http.Request) (executionRow, error) {
	id, node, _ := strings.Cut(r.PathValue("execution"), "-")
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return executionRow{}, errNoExecution
	}
	e, err := a.store.clients.execution(n)
	if err == nil && (e.Node != node || e.JobName != r.PathValue("job")) {
		err = errNoExecution
	}
	return e, err
}

// showOutput answers with an output as it is: with ranges once the execution
// has finished, and before with what there is so far or, if the query has
// follow, all that comes until it ends.
func (a *api) showOutput(r *http.Request) (*response, error) {
	e, err := a.execution(r)
	if err != nil {
		return nil, err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if e.Finished == 0 {
			err := a.runningOutput(w, r, e)
			if !errors.Is(err, errUnknownExecution) {
				return err
			}
			// Its node reported it since, or has lost it.
			if e, err = a.execution(r); err != nil {
				return err
			}
		}
		http.ServeContent(w, r, "", timeOf(e.Finished), bytes.NewReader(e.Output))
		return nil
	}}, nil
}

// runningOutput asks the node of an execution. Errors are those from before
// the first byte.
func (a *api) runningOutput(w http.ResponseWriter, r *http.Request, e executionRow) error {
	control := http.NewResponseController(w)
	follow := r.URL.Query().Has("follow")
	if follow {
		// It may go on for days. Where there is no deadline none is lifted.
		_ = control.SetReadDeadline(time.Time{})
	}
	out := &flushing{w: w, control: control}
	ctx, stop := a.whileAdmitted(r)
	defer stop()
	err := a.output(ctx, e.Node, e.ID, follow, out)
	switch {
	case err != nil && out.began:
		panic(http.ErrAbortHandler) // nobody must take a part for the whole
	case err != nil && ctx.Err() != nil && r.Context().Err() == nil:
		err = errUnauthenticated
	case err != nil && !errors.Is(err, errUnknownExecution) && r.Context().Err() == nil:
		a.log.Warn("an output could not be read from its node", "node", e.Node, "err", err)
		err = problem{http.StatusServiceUnavailable, fmt.Sprintf("node %s does not answer; it has the output until the run is over", e.Node)}
	}
	return err
}

// whileAdmitted is the context of an output that is followed: it ends when its
// caller may not see it any more.
func (a *api) whileAdmitted(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(r.Context())
	if a.acl {
		go func() {
			ticker := time.NewTicker(admitLooks * lookTime)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				if _, err := a.admit(route{pattern: outputRoute, capability: mayRead}, r); err != nil {
					stop()
				}
			}
		}()
	}
	return ctx, stop
}

// flushing sends on at once what is written to it.
type flushing struct {
	w       io.Writer
	control *http.ResponseController
	began   bool
}

func (f *flushing) Write(p []byte) (int, error) {
	f.began = true
	n, err := f.w.Write(p)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// killExecution ends an execution and answers at once, with the execution as
// it is then: a process gets TERM, and KILL if that does not help.
func (a *api) killExecution(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	e, err := a.anyExecution(r)
	if err != nil {
		return nil, err
	}
	if err := a.scheduler.kill(r.Context(), req, e); err != nil {
		return nil, err
	}
	e, err = a.anyExecution(r)
	return &response{status: http.StatusAccepted, body: e.view(time.UTC)}, err
}

// tickView is a tick as clients see it.
type tickView struct {
	Due        time.Time  `json:"due"`             // of a range the first
	Until      *time.Time `json:"until,omitempty"` // of a range the last
	Count      int64      `json:"count,omitempty"` // of a range
	Outcome    string     `json:"outcome"`
	Reason     string     `json:"reason,omitempty"`
	Executions []string   `json:"executions,omitempty"`
}

func (t *tickRow) view() tickView {
	v := tickView{Due: timeOf(t.Due), Outcome: t.Outcome, Reason: t.Reason, Executions: t.Started}
	if t.Count > 1 {
		until := timeOf(t.Until)
		v.Until, v.Count = &until, t.Count
	}
	return v
}

// tickDayView counts the ticks of a day that are no longer kept one by one.
type tickDayView struct {
	Date    time.Time `json:"date"`
	Ran     int64     `json:"ran"`
	Late    int64     `json:"late"`
	Skipped int64     `json:"skipped"`
	Missed  int64     `json:"missed"`
}

// listTicks answers what became of every tick of a job that fell due in a
// range of time, newest first, and how many there were of each outcome. due is
// the sum of the others. Days whose ticks are kept as counts count as a whole.
func (a *api) listTicks(r *http.Request) (*response, error) {
	q := r.URL.Query()
	end := time.Now()
	if err := timeParam(q, "end", &end); err != nil {
		return nil, err
	}
	start := end.Add(-24 * time.Hour)
	if err := timeParam(q, "start", &start); err != nil {
		return nil, err
	}
	if start.After(end) {
		return nil, badRequest("end: must not lie before start")
	}
	first, last, err := page(q)
	if err != nil {
		return nil, err
	}
	var list []tickRow
	var total int
	var sum tickCount
	var days []tickCount
	err = a.store.clients.atOnce(func(s *reader) error {
		row, err := s.job(r.PathValue("job"))
		if err != nil {
			return err
		}
		if list, total, err = s.ticks(row.version.ID, nanosOf(start), nanosOf(end), first, last); err != nil {
			return err
		}
		sum, days, err = s.tickCounts(row.version.ID, nanosOf(start), nanosOf(end))
		return err
	})
	if err != nil {
		return nil, err
	}
	views := make([]tickView, len(list))
	for i, t := range list {
		views[i] = t.view()
	}
	older := make([]tickDayView, len(days))
	for i, d := range days {
		older[i] = tickDayView{timeOf(d.Day * nanosPerDay), d.Ran, d.Late, d.Skipped, d.Missed}
		sum.Ran, sum.Late, sum.Skipped, sum.Missed = sum.Ran+d.Ran, sum.Late+d.Late, sum.Skipped+d.Skipped, sum.Missed+d.Missed
	}
	return &response{status: http.StatusOK, header: count(total), body: map[string]any{
		"due": sum.Ran + sum.Late + sum.Skipped + sum.Missed, "ran": sum.Ran, "late": sum.Late, "skipped": sum.Skipped, "missed": sum.Missed,
		"ticks": views, "days": older,
	}}, nil
}

// timeParam reads a time of the query into t, if it is there.
func timeParam(q url.Values, name string, t *time.Time) error {
	if !q.Has(name) {
		return nil
	}
	given, err := time.Parse(time.RFC3339Nano, q.Get(name))
	if err != nil {
		return badRequest("%s: %q is no time, write it as in \"2030-01-31T12:00:00Z\"", name, q.Get(name))
	}
	*t = given
	return nil
}

func (a *api) deleteExecutions(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	row, res, err := a.scheduler.deleteExecutions(r.Context(), req, r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	return a.jobResponse(r, http.StatusOK, row, res, nil)
}

func (a *api) busy(r *http.Request) (*response, error) {
	list, err := a.store.clients.unfinishedExecutions()
	if err != nil {
		return nil, err
	}
	n, rows := a.viewsOf(r, list, outputBytesMax)
	return &response{status: http.StatusOK, header: count(n), rows: rows}, nil
}

// viewsOf shows those of the executions whose jobs the caller may list, and how many they are, with outputs up to now.
func (a *api) viewsOf(r *http.Request, list []executionRow, outputMax int) (int, documents) {
	c := a.callerOf(r)
	list = slices.DeleteFunc(list, func(e executionRow) bool { return !c.may(jobPath(e.JobName)+"/executions", mayList) })
	a.addPrinted(r.Context(), list, outputMax)
	show := func(e executionRow) (json.RawMessage, error) { return json.Marshal(e.view(time.UTC)) }
	return len(list), shownAs(a.store.clients.withOutputs(list, outputMax), show)
}

func (a *api) showPause(r *http.Request) (*response, error) {
	return &response{status: http.StatusOK, body: map[string]bool{"paused": a.store.paused.Load()}}, nil
}

func (a *api) pause(r *http.Request) (*response, error)   { return a.setPaused(r, true) }
func (a *api) unpause(r *http.Request) (*response, error) { return a.setPaused(r, false) }

func (a *api) setPaused(r *http.Request, paused bool) (*response, error) {
	req, err := a.request(r)
	if err == nil {
		err = a.scheduler.setPaused(r.Context(), req, paused)
	}
	return &response{status: http.StatusOK, body: map[string]bool{"paused": paused}}, err
}

// stats answers with one entry a UTC day, today's last.
func (a *api) stats(r *http.Request) (*response, error) {
	days := statsDays
	if text := r.URL.Query().Get("days"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > statsDaysMax {
			return nil, badRequest("days: must be a number between 1 and %d", statsDaysMax)
		}
		days = n
	}
	today := time.Now().UnixNano() / nanosPerDay
	list, err := a.store.clients.dailyStats(today-int64(days)+1, today)
	type day struct {
		Date    time.Time `json:"date"`
		Success int64     `json:"success_count"`
		Failed  int64     `json:"failed_count"`
	}
	views := make([]day, len(list))
	for i, d := range list {
		views[i] = day{timeOf(d.Day * nanosPerDay), d.Success, d.Failed}
	}
	return &response{status: http.StatusOK, body: map[string]any{"stats": views}}, err
}

func (a *api) listPolicies(r *http.Request) (*response, error) {
	list, err := a.store.clients.policies()
	return &response{status: http.StatusOK, header: count(len(list)), body: list}, err
}

func (a *api) showPolicy(r *http.Request) (*response, error) {
	p, err := a.store.clients.policy(r.PathValue("name"))
	return &response{status: http.StatusOK, body: p}, err
}

func (a *api) putPolicy(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	body, err := body(r)
	if err != nil {
		return nil, err
	}
	p, err := decodePolicy(r.PathValue("name"), body)
	if err != nil {
		return nil, badRequest("the policy is invalid: %v", err)
	}
	if err := p.checkPaths(a.paths()); err != nil {
		return nil, badRequest("the policy is invalid: %v", err)
	}
	if _, fixed := builtInPolicy(p.Name); len(body) == 0 && !fixed {
		old, err := a.store.clients.policy(p.Name)
		switch {
		case err == nil && old != p:
			return nil, badRequest("the body is empty, and would take from the policy %q all that it grants; send its Rules, or {\"Rules\": \"{}\"} if that is meant", p.Name)
		case err != nil && !errors.Is(err, errNoPolicy):
			return nil, err
		}
	}
	return &response{status: http.StatusAccepted, body: p}, a.scheduler.putPolicy(r.Context(), req, p)
}

func (a *api) deletePolicy(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	p, err := a.scheduler.deletePolicy(r.Context(), req, r.PathValue("name"))
	return &response{status: http.StatusOK, body: p}, err
}

// auditView is a row of the audit trail as clients see it. Ours.
type auditView struct {
	Time      time.Time       `json:"time"`
	Action    string          `json:"action"`
	Actor     string          `json:"actor"`                // accessor of a token, "anonymous" or "bootstrap"
	ActorName string          `json:"actor_name,omitempty"` // that the token had
	Address   string          `json:"address"`
	JobName   string          `json:"job_name,omitempty"`
	Object    string          `json:"object,omitempty"`
	Before    json.RawMessage `json:"before"`
	After     json.RawMessage `json:"after"`
}

// listAudit answers who changed what, newest first, by default at any time.
func (a *api) listAudit(r *http.Request) (*response, error) {
	q := r.URL.Query()
	from, to := timeOf(0), timeOf(math.MaxInt64)
	if err := timeParam(q, "start", &from); err != nil {
		return nil, err
	}
	if err := timeParam(q, "end", &to); err != nil {
		return nil, err
	}
	start, end, err := page(q)
	if err != nil {
		return nil, err
	}
	f := auditFilter{From: nanosOf(from), To: nanosOf(to), Job: q.Get("job"), Actor: q.Get("actor"), Action: q.Get("action")}
	rows, total, older, err := a.store.clients.audit(f, start, min(end, start+auditPageMax))
	if err != nil {
		return nil, err
	}
	show := func(row auditRow) (json.RawMessage, error) {
		return plainJSON(auditView{Time: timeOf(row.At), Action: row.Action, Actor: row.Actor, ActorName: row.Name, Address: row.Address,
			JobName: row.Job, Object: row.Object, Before: rawJSON(row.Before), After: rawJSON(row.After)})
	}
	header := count(total)
	if older != 0 {
		header["Belfry-Older"] = timeOf(older).Format(time.RFC3339Nano)
	}
	return &response{status: http.StatusOK, header: header, rows: shownAs(rows, show)}, nil
}

// tokenView is a token as clients see it.
type tokenView struct {
	AccessorID     string
	SecretID       string `json:",omitempty"` // once, when it is made
	Name           string
	Type           string
	Policies       []string
	CreateTime     time.Time
	ExpirationTime *time.Time `json:",omitempty"`
}

func (t token) view(secret string) tokenView {
	v := tokenView{AccessorID: t.Accessor, SecretID: secret, Name: t.Name, Type: t.Type, Policies: append([]string{}, t.Policies...), CreateTime: timeOf(t.Created)}
	if t.Expires != 0 {
		at := timeOf(t.Expires)
		v.ExpirationTime = &at
	}
	return v
}

func (a *api) listTokens(r *http.Request) (*response, error) {
	if !a.acl {
		return nil, errNoACL
	}
	list, err := a.store.clients.tokens()
	views := make([]tokenView, len(list))
	for i, t := range list {
		views[i] = t.view("")
	}
	return &response{status: http.StatusOK, header: count(len(views)), body: views}, err
}

func (a *api) showToken(r *http.Request) (*response, error) {
	if !a.acl {
		return nil, errNoACL
	}
	t, err := a.store.clients.token(r.PathValue("accessor"))
	return &response{status: http.StatusOK, body: t.view("")}, err
}

// createToken answers with the secret, which is shown nowhere else and never again.
func (a *api) createToken(r *http.Request) (*response, error) {
	if !a.acl {
		return nil, errNoACL
	}
	doc, err := body(r)
	if err != nil {
		return nil, err
	}
	t, err := decodeToken(doc, time.Now().UnixNano())
	if err != nil {
		return nil, badRequest("the token is invalid: %v", err)
	}
	return a.makeToken(r, t, false)
}

// makeToken gives a token its accessor and its secret and stores it.
func (a *api) makeToken(r *http.Request, t token, first bool) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	secret, hash := newSecret()
	t.Accessor, t.Hash = crand.Text(), hash[:]
	err = a.scheduler.putToken(r.Context(), req, t, first)
	if errors.Is(err, errNoPolicy) {
		return nil, badRequest("the token is invalid: Policies: %v", err)
	}
	return &response{status: http.StatusCreated, body: t.view(secret)}, err
}

func (a *api) deleteToken(r *http.Request) (*response, error) {
	if !a.acl {
		return nil, errNoACL
	}
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	t, err := a.scheduler.deleteToken(r.Context(), req, r.PathValue("accessor"))
	return &response{status: http.StatusOK, body: t.view("")}, err
}

// bootstrap makes the first management token; mayAsk has seen the secret.
func (a *api) bootstrap(r *http.Request) (*response, error) {
	if !a.acl {
		return nil, errNoACL
	}
	t := token{Name: "bootstrap", Type: tokenManagement, Created: time.Now().UnixNano()}
	res, err := a.makeToken(r, t, true)
	if err == nil || errors.Is(err, errManaged) {
		if err := removeBootstrapSecret(a.dir); err != nil {
			a.log.Warn("the used bootstrap secret stays", "err", err)
		}
	}
	return res, err
}

// self answers with the caller's own token, and what it grants. With path and
// capability in the query it is 403 if the token does not have that.
func (a *api) self(r *http.Request) (*response, error) {
	if !a.acl {
		return nil, errNoACL
	}
	c, q := a.callerOf(r), r.URL.Query()
	if path, capability := q.Get("path"), q.Get("capability"); path+capability != "" && !c.may(path, capability) {
		return nil, forbidden(path, capability)
	}
	return &response{status: http.StatusOK, body: struct {
		tokenView
		Rules []policyRules // of its policies; a management token needs none
	}{c.token.view(""), append([]policyRules{}, c.rules...)}}, nil
}

// nextTicks answers when a schedule falls due, for who is about to use it.
func (a *api) nextTicks(r *http.Request) (*response, error) {
	q := r.URL.Query()
	j := job{Name: q.Get("name"), Schedule: q.Get("schedule"), Timezone: q.Get("timezone")}
	zone := j.zone(a.scheduler.timezone())
	loc, err := loadZone(zone)
	if err != nil {
		return nil, badRequest("timezone: %v", err)
	}
	s, err := parseSchedule(j.Schedule, zone, j.Name)
	if err != nil {
		return nil, badRequest("schedule: %v", err)
	}
	from, n := time.Now(), 5
	if err := timeParam(q, "from", &from); err != nil {
		return nil, err
	}
	if text := q.Get("count"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > upcomingMax {
			return nil, badRequest("count: must be a number between 1 and %d", upcomingMax)
		}
	}
	loc = s.zone(loc)
	next := []time.Time{}
	for t := s.next(from); !t.IsZero() && len(next) < n; t = s.next(t) {
		local := t.In(loc)
		if local.Year() < 0 || nanosOf(t) == math.MaxInt64 {
			break // what JSON has no form for, or no job falls due at
		}
		next = append(next, local)
	}
	return &response{status: http.StatusOK, body: map[string]any{"next": next, "timezone": loc.String(), "words": s.words(loc)}}, nil
}

// summary answers in numbers how all jobs are, and which ticks did not run
// last, these of the jobs whose ticks the caller may list. Ours.
func (a *api) summary(r *http.Request) (*response, error) {
	sum, err := a.store.summary(time.Now())
	if err != nil {
		return nil, err
	}
	type unrun struct {
		Job string `json:"job_name"`
		tickView
	}
	ticks := sum.Unrun
	if globs := a.callerOf(r).rowGlobs("ticks", mayList); globs != nil {
		if ticks, err = a.store.clients.unrun(globs); err != nil {
			return nil, err
		}
	}
	list := []unrun{}
	for _, t := range ticks {
		list = append(list, unrun{t.Job, t.view()})
	}
	return &response{status: http.StatusOK, body: map[string]any{
		"jobs": map[string]int{
			"total": sum.Jobs, "success": sum.Good, "failed": sum.Failed, "partially_failed": sum.Partly, "untriggered": sum.Never, "disabled": sum.Disabled,
		},
		"running":     sum.Running,
		"start_delay": map[string]any{"ticks": len(sum.Delays), "median_ms": delay(sum.Delays, 50), "p99_ms": delay(sum.Delays, 99), "max_ms": delay(sum.Delays, 100)},
		"today":       map[string]int64{"success_count": sum.DayGood, "failed_count": sum.DayBad, "skipped": sum.DaySkipped, "missed": sum.DayMissed},
		"unrun":       list,
	}}, nil
}

// delay is the percentile of sorted durations by nearest rank, in milliseconds.
func delay(sorted []time.Duration, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[max(0, (len(sorted)*percent+99)/100-1)].Microseconds()) / 1000
}

// outcomes answers how the last executions of some jobs ended, by the names of
// those that the caller may see, newest first. Ours.
func (a *api) outcomes(r *http.Request) (*response, error) {
	names := r.URL.Query()["job"]
	if len(names) > outcomeJobsMax {
		return nil, badRequest("job: may be given %d times at the most", outcomeJobsMax)
	}
	c := a.callerOf(r)
	names = slices.DeleteFunc(names, func(name string) bool {
		return !c.may(jobPath(name)+"/executions", mayList)
	})
	rows, err := a.store.clients.lastExecutions(names, outcomesShown)
	type outcome struct {
		ID         string    `json:"id"`
		Outcome    string    `json:"outcome"`
		StartedAt  time.Time `json:"started_at"`
		FinishedAt time.Time `json:"finished_at"`
	}
	views := map[string][]outcome{}
	for name, list := range rows {
		views[name] = []outcome{}
		for _, e := range list {
			v := e.view(time.UTC)
			views[name] = append(views[name], outcome{v.ID, v.Outcome, v.StartedAt, v.FinishedAt})
		}
	}
	return &response{status: http.StatusOK, body: views}, err
}

// targets answers with the nodes to which a tick would be sent now, or of which
// it would take some if a tag has a count. Ours.
func (a *api) targets(r *http.Request) (*response, error) {
	row, err := a.store.clients.job(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	j, err := row.definition()
	names := []string{}
	for _, n := range matchingNodes(j.Tags, a.scheduler.moment().nodes) {
		names = append(names, n.Name)
	}
	return &response{status: http.StatusOK, body: names}, err
}

// recentExecutions answers with the executions of all jobs that started in a
// range of time, by default the last hour, newest first. Ours.
func (a *api) recentExecutions(r *http.Request) (*response, error) {
	q := r.URL.Query()
	end := time.Now()
	if err := timeParam(q, "end", &end); err != nil {
		return nil, err
	}
	start := end.Add(-time.Hour)
	if err := timeParam(q, "start", &start); err != nil {
		return nil, err
	}
	limit, err := limitParam(q, recentMax)
	if err != nil {
		return nil, err
	}
	if known := append([]string{"bad"}, runOutcomes...); q.Get("outcome") != "" && !slices.Contains(known, q.Get("outcome")) {
		return nil, badRequest("outcome: %q is none, want one of %s", q.Get("outcome"), strings.Join(known, ", "))
	}
	outputMax, err := strconv.Atoi(q.Get("output_size_limit"))
	if err != nil || outputMax < 0 {
		outputMax = 0
	}
	outputMax = min(outputMax, recentOutputMax)
	globs := a.callerOf(r).rowGlobs("executions", mayList)
	list, err := a.store.clients.recentExecutions(nanosOf(start), nanosOf(end), q.Get("outcome"), globs, limit)
	if err != nil {
		return nil, err
	}
	_, rows := a.viewsOf(r, list, outputMax)
	return &response{status: http.StatusOK, rows: rows}, nil
}

// limitParam reads how many rows a list may have.
func limitParam(q url.Values, most int) (int, error) {
	text := q.Get("limit")
	if text == "" {
		return most, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, badRequest("limit: must be a number between 1 and %d", most)
	}
	return n, nil
}

// upcoming answers with the ticks that will fall due in a range of time, by
// default the next hour, the earliest first. Ours.
func (a *api) upcoming(r *http.Request) (*response, error) {
	q := r.URL.Query()
	start := time.Now()
	if err := timeParam(q, "start", &start); err != nil {
		return nil, err
	}
	end := start.Add(time.Hour)
	if err := timeParam(q, "end", &end); err != nil {
		return nil, err
	}
	limit, err := limitParam(q, comingMax)
	if err != nil {
		return nil, err
	}
	list, err := a.scheduler.coming(start, end, a.callerOf(r).rowGlobs("", mayRead), limit)
	return &response{status: http.StatusOK, body: list}, err
}

const (
	lookTime   = time.Second // between two looks at what stands in no log entry
	admitLooks = 2           // of these, between two looks at the token
	aliveLooks = 15          // of these, between two signs of life
	eventsMax  = 200         // that a client is told at once
)

// errWatchers is the answer to one client too many.
var errWatchers = problem{http.StatusServiceUnavailable, fmt.Sprintf("%d clients are told already what happens here; ask another server, or read again from time to time", watchersMax)}

// watch sends what happens to the jobs that the caller may see, a line for each
// event, until one of both sides goes. Ours.
func (a *api) watch(r *http.Request) (*response, error) {
	return &response{serve: func(w http.ResponseWriter) error {
		next, ok := a.store.events.enter()
		if !ok {
			return errWatchers
		}
		defer a.store.events.leave()
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Time{}) // as for an output that is followed
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("X-Accel-Buffering", "no") // nginx would keep the lines until there are many
		v := &watcher{api: a, out: &patientWriter{ResponseWriter: w, control: control}}
		v.recognize(a.callerOf(r))
		if err := v.follow(r, next); err != nil {
			a.log.Error("what happens is told to nobody any more who watched", "err", err)
		}
		return nil
	}}, nil
}

// A watcher is a client that is told what happens.
type watcher struct {
	api     *api
	caller  *caller
	globs   []string  // of the jobs that it may see
	out     io.Writer // sends on at once, and fails if that takes too long
	leader  string    // as it was told, as are the members
	members string
}

// recognize says who it is, now.
func (v *watcher) recognize(c *caller) { v.caller, v.globs = c, c.jobGlobs() }

// follow tells it everything from window next on. The error is of the store.
func (v *watcher) follow(r *http.Request, next uint64) error {
	v.look()
	list := []event{{Type: eventHello, Node: v.api.node, Leader: &v.leader}}
	ticker := time.NewTicker(lookTime)
	defer ticker.Stop()
	for looks := 1; ; {
		windows, end, more := v.api.store.events.since(next)
		next = end
		news, err := v.news(windows)
		if err != nil {
			return err
		}
		if v.send(append(list, news...)) != nil {
			return nil // the client has gone
		}
		list = nil
		if len(news) > 0 && news[0].Type == eventReload {
			more = nil // to read everything takes it longer than a window
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-v.api.stopping:
			return nil
		case <-more:
			continue
		case <-ticker.C:
		}
		if looks%admitLooks == 0 && v.api.acl {
			c, err := v.api.admit(route{pattern: watchRoute, capability: mayListJobs}, r)
			if err != nil {
				return nil // it will hear why when it asks again
			}
			v.recognize(c)
		}
		if list = v.look(); looks%aliveLooks == 0 {
			list = append(list, event{Type: eventAlive})
		}
		looks++
	}
}

// news returns what windows have for it.
func (v *watcher) news(windows []*window) ([]event, error) {
	var list []event
	for _, w := range windows {
		if w.full {
			return []event{{Type: eventReload}}, nil
		}
		events, err := w.read(v.api.store.eventsOf)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e, ok := v.shown(e); ok {
				list = append(list, e)
			}
		}
	}
	if len(list) > eventsMax {
		list = []event{{Type: eventReload}}
	}
	return list, nil
}

// shown returns an event as it may see it: who may see a job, but not its
// executions, sees that it has changed.
func (v *watcher) shown(e event) (event, bool) {
	switch e.Type {
	case eventPaused:
		return e, v.caller.may("/v1/pause", mayRead)
	case eventStarted, eventEnded:
		if v.caller.may(jobPath(e.Job)+"/executions", mayList) {
			return e, true
		}
		e = event{Type: eventJob, Job: e.Job}
	}
	return e, slices.ContainsFunc(v.globs, func(glob string) bool { return matchSegment(glob, e.Job) })
}

// look returns what has changed since the last look in what no log entry tells.
func (v *watcher) look() (list []event) {
	leader, members := "", ""
	if m, ok := v.api.leader(); ok && v.caller.may("/v1/leader", mayRead) {
		leader = m.Name
	}
	if v.caller.may("/v1/members", mayList) {
		members = fmt.Sprint(v.api.members())
	}
	if leader != v.leader {
		list = append(list, event{Type: eventLeader, Leader: &leader})
	}
	if members != v.members {
		list = append(list, event{Type: eventMembers})
	}
	v.leader, v.members = leader, members
	return list
}

// send writes events, if there are any.
func (v *watcher) send(list []event) error {
	if len(list) == 0 {
		return nil
	}
	var lines bytes.Buffer
	lineOf := json.NewEncoder(&lines)
	for _, e := range list {
		if err := lineOf.Encode(e); err != nil {
			return err
		}
	}
	_, err := v.out.Write(lines.Bytes())
	return err
}

// A member is a node as clients know it from Serf, whose field names these
// are. The protocol numbers mean nothing here.
type member struct {
	Name        string
	Addr        string
	Port        int
	Tags        map[string]string
	Status      int // 1 alive, 2 leaving, 3 left, 4 failed
	ProtocolMin int
	ProtocolMax int
	ProtocolCur int
	DelegateMin int
	DelegateMax int
	DelegateCur int
}

// memberStatus are the names of the values of member.Status.
var memberStatus = []string{"none", "alive", "leaving", "left", "failed"}

// memberView is a member in the list of members.
type memberView struct {
	member
	ID         string `json:"id"`
	StatusText string `json:"statusText"`
}

func (a *api) listMembers(r *http.Request) (*response, error) {
	views := []memberView{}
	for _, m := range a.members() {
		views = append(views, memberView{m, m.Name, memberStatus[m.Status]})
	}
	return &response{status: http.StatusOK, header: count(len(views)), body: views}, nil
}

// leaving has a node that is asked to leave do so, and a server that hears of it
// from another node have the leader put it on record.
func (a *api) leaving(leave http.Handler) http.Handler {
	record := a.atLeader(a.answer(a.recordLeave))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := forwardedFrom(r.Context()); ok {
			record.ServeHTTP(w, r)
			return
		}
		leave.ServeHTTP(w, r)
	})
}

const unaudited = "the audit trail does not say who had this node leave"

// leaveCluster stops this node for good, and answers with the members as they
// were. The answer is still sent: the node drains its requests first. Without a
// leader the cluster has no record of it, nor of any other change.
func (a *api) leaveCluster(r *http.Request) (*response, error) {
	a.log.Info("leaving, as a request asked for", "from", r.RemoteAddr)
	res, err := a.listMembers(r)
	if err != nil {
		return nil, err
	}
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	if a.leading() {
		err = a.noteLeave(r.Context(), req, a.node)
	} else {
		ctx, cancel := context.WithTimeout(r.Context(), leaderTimeout)
		defer cancel()
		answer := &statusWriter{ResponseWriter: discardWriter{http.Header{}}}
		err = a.relay(answer, a.askedToLeave(ctx, r), req.Actor, req.ID)
		if err == nil && answer.status != http.StatusOK {
			err = fmt.Errorf("the leader answered %d", answer.status)
		}
	}
	if err != nil {
		a.log.Warn(unaudited, "actor", req.Actor, "address", req.Address, "err", err)
	}
	if err := a.leave(r.Context()); err != nil {
		return nil, problem{http.StatusServiceUnavailable, err.Error()}
	}
	return res, nil
}

// askedToLeave returns the request that has the leader put on record that this
// node was asked to leave by r.
func (a *api) askedToLeave(ctx context.Context, r *http.Request) *http.Request {
	tell := r.Clone(ctx)
	tell.Body, tell.ContentLength = http.NoBody, 0
	tell.URL = &url.URL{Path: "/v1/leave", RawQuery: url.Values{"node": {a.node}}.Encode()}
	tell.Header.Del("Idempotency-Key") // another node may be asked under the same
	return tell
}

// recordLeave puts on record which node was asked to leave.
func (a *api) recordLeave(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err == nil {
		err = a.noteLeave(r.Context(), req, r.URL.Query().Get("node"))
	}
	return &response{status: http.StatusOK, body: struct{}{}}, err
}

func (a *api) noteLeave(ctx context.Context, req request, node string) error {
	return a.scheduler.note(ctx, req, audited{Action: actionLeave, Object: node})
}

// backup sends a copy of the state as it is on this server: a database file
// from which "belfry agent" starts, as a cluster of its own. Ours. One at a
// time: each takes the disk another copy of all, for as long as its client reads.
func (a *api) backup(r *http.Request) (*response, error) {
	if !a.copying.CompareAndSwap(false, true) {
		return nil, problem{http.StatusServiceUnavailable, "another backup is under way; try again when it is done"}
	}
	file, _, err := a.store.image(r.Context())
	if err != nil {
		a.copying.Store(false)
		return nil, err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		defer a.copying.Store(false)
		defer file.Close()
		w = &patientWriter{ResponseWriter: w, control: http.NewResponseController(w)}
		w.Header().Set("Content-Disposition", `attachment; filename="belfry.db"`)
		w.Header().Set("Content-Type", "application/vnd.sqlite3")
		http.ServeContent(w, r, "", time.Time{}, file)
		return nil
	}}, nil
}

// listPeers shows the servers that vote, or wish to. Ours.
func (a *api) listPeers(r *http.Request) (*response, error) {
	return &response{status: http.StatusOK, body: a.peers()}, nil
}

// dropPeer takes a server that is gone out of those that vote. Ours.
func (a *api) dropPeer(r *http.Request) (*response, error) {
	req, err := a.request(r)
	if err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	if err := a.removePeer(r.Context(), id); err != nil {
		return nil, err
	}
	return &response{status: http.StatusOK, body: struct{}{}}, a.scheduler.note(r.Context(), req, audited{Action: actionRemovePeer, Object: id})
}

// relayHandler is the HTTP side of a node without state: what it is asked, a
// server answers, which looks at the token.
// That it does not lead, and how it is, it says itself.
func (a *api) relayHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(leaveRoute, func(w http.ResponseWriter, r *http.Request) {
		err := a.mayLeave(r)
		if err == nil {
			err = a.leave(r.Context())
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
	relay := func(w http.ResponseWriter, r *http.Request) {
		if err := a.askServer(w, r); err != nil {
			a.fail(w, r, err)
		}
	}
	mux.HandleFunc("/", relay)
	mux.Handle("GET /v1/isleader", a.answer(a.isFollower))
	mux.Handle("GET /health", a.answer(a.showHealth))
	for _, stream := range []string{watchRoute, outputRoute} {
		mux.HandleFunc(stream, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // it may go on for days
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			go func() {
				select {
				case <-a.stopping:
					cancel()
				case <-ctx.Done():
				}
			}()
			relay(w, r.WithContext(ctx))
		})
	}
	return a.guard(mux)
}

// errNoServerThere is what a node without state answers that reaches no server.
var errNoServerThere = problem{http.StatusServiceUnavailable, "no server can be reached; see --retry-join"}

// askServer has a server answer a request to a node without state.
func (a *api) askServer(w http.ResponseWriter, r *http.Request) error {
	if !a.acl {
		letIn(r)
	}
	err := a.relay(w, r, actorAnonymous, newRequestID())
	if errors.Is(err, errNotLeader) {
		a.log.Debug("no server answers in place of this node", "err", err)
		err = errNoServerThere
	}
	return err
}

// mayLeave has the leader say whether the caller may take this node out, and put
// on record that it does. Without access control everybody may.
func (a *api) mayLeave(r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), leaderTimeout)
	defer cancel()
	answer := &statusWriter{ResponseWriter: discardWriter{http.Header{}}}
	err := a.askServer(answer, a.askedToLeave(ctx, r))
	switch {
	case err == nil && answer.status == http.StatusOK:
		return nil
	case !a.acl:
		a.log.Warn(unaudited, "address", clientAddr(r), "status", answer.status, "err", err)
		return nil
	case err != nil:
		return err
	case answer.status == http.StatusForbidden:
		return forbidden("/v1/leave", mayCreate)
	case answer.status == http.StatusUnauthorized:
		return errUnauthenticated
	}
	return problem{http.StatusServiceUnavailable, "no server can say whether this token may do that; try again later"}
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// Unwrap implements what http.ResponseController looks for.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// discardWriter is where an answer goes of which only the status counts.
type discardWriter struct{ header http.Header }

func (w discardWriter) Header() http.Header         { return w.header }
func (w discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w discardWriter) WriteHeader(int)             {}

func (a *api) showLeader(r *http.Request) (*response, error) {
	m, ok := a.leader()
	if !ok {
		return nil, errNotLeader
	}
	return &response{status: http.StatusOK, body: m}, nil
}

func (a *api) isLeader(r *http.Request) (*response, error) {
	if !a.leading() {
		return a.isFollower(r)
	}
	return &response{status: http.StatusOK, body: "I am a leader"}, nil
}

func (a *api) isFollower(*http.Request) (*response, error) {
	return &response{status: http.StatusNotFound, body: "I am a follower"}, nil
}

// showHealth answers 200 where this node reads and writes, though something may
// be wrong, and else 503. Asked with live it is 200 as long as the process
// answers, for who would start it again: that helps where a majority is gone as
// little as it hurts. Asked with leader it is 200 on the leader alone.
func (a *api) showHealth(r *http.Request) (*response, error) {
	q := r.URL.Query()
	answer := func(ok bool, yes, no string) *response {
		if ok {
			return &response{status: http.StatusOK, body: map[string]any{"status": yes}}
		}
		return &response{status: http.StatusServiceUnavailable, body: map[string]any{"status": no}}
	}
	if q.Has("live") {
		return answer(true, "alive", ""), nil
	}
	if q.Has("leader") {
		return answer(a.leading != nil && a.leading(), "leader", "follower"), nil
	}
	problems, warnings := a.health()
	res := answer(len(problems) == 0, "healthy", "unhealthy")
	if !a.ownHost(r.Host) || !a.callerOf(r).may("/health", mayRead) {
		return res, nil
	}
	for name, list := range map[string][]string{"problems": problems, "warnings": warnings} {
		if len(list) > 0 {
			res.body.(map[string]any)[name] = list
		}
	}
	return res, nil
}

// metrics answers in the text format of Prometheus.
func (a *api) metrics(r *http.Request) (*response, error) {
	g := a.gauges()
	g.Leading, g.Lag, g.Requests = a.leading(), a.scheduler.lag(time.Now()), &a.refusals
	var err error
	if g.Jobs, err = a.store.clients.countJobs(); err != nil {
		return nil, err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		a.scheduler.stats.write(w, g) // an error is the client's, who has gone
		return nil
	}}, nil
}

// openapi answers with the contract of this API.
func (a *api) openapi(r *http.Request) (*response, error) {
	doc, err := web.ReadFile("web/openapi.yaml")
	return &response{serve: func(w http.ResponseWriter) error {
		w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
		w.Write(doc) // an error is the client's, who has gone
		return nil
	}}, err
}

func (a *api) status(r *http.Request) (*response, error) {
	var tags map[string]string
	for _, m := range a.members() {
		if m.Name == a.node {
			tags = m.Tags
		}
	}
	return &response{status: http.StatusOK, body: map[string]any{
		"agent": map[string]string{"name": a.node, "version": version},
		"serf":  map[string]string{},
		"tags":  tags,
	}}, nil
}
