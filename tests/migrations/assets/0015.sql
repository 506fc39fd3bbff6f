BEGIN TRANSACTION;
CREATE TABLE agent (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	host JSON NOT NULL, 
	enrolled_at DATETIME NOT NULL, 
	last_seen_at DATETIME NOT NULL, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_agent PRIMARY KEY (id), 
	CONSTRAINT uq_agent_sha256 UNIQUE (sha256)
);
INSERT INTO "agent" VALUES('agent_id','agent_name','abababababababababababababababababababababababababababababababab','ready','{}','2026-01-01 00:00:00.000000','2026-01-01 00:00:00.000000','agent_owner_id');
CREATE TABLE api_key (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	scopes JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME, 
	last_used_at DATETIME, 
	revoked_at DATETIME, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_api_key PRIMARY KEY (id), 
	CONSTRAINT uq_api_key_sha256 UNIQUE (sha256)
);
INSERT INTO "api_key" VALUES('api_key_id','api_key_name','abababababababababababababababababababababababababababababababab','[]','2026-01-01 00:00:00.000000',NULL,NULL,NULL,'api_key_owner_id');
CREATE TABLE app_alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT app_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "app_alembic_version" VALUES('0015');
CREATE TABLE artefact (
	id VARCHAR(40) NOT NULL, 
	candidate_id VARCHAR(40) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	blob_sha VARCHAR(64) NOT NULL, 
	filename TEXT NOT NULL, 
	bytes BIGINT NOT NULL, 
	verification VARCHAR(16) NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_artefact PRIMARY KEY (id), 
	CONSTRAINT fk_artefact_blob_sha_blob FOREIGN KEY(blob_sha) REFERENCES blob (sha256), 
	CONSTRAINT fk_artefact_candidate_id_candidate FOREIGN KEY(candidate_id) REFERENCES candidate (id) ON DELETE CASCADE, 
	CONSTRAINT uq_artefact_candidate_id_kind UNIQUE (candidate_id, kind)
);
INSERT INTO "artefact" VALUES('artefact_id','candidate_id','artefact_kind','abababababababababababababababababababababababababababababababab','artefact_filename',1,'artefact_verification','2026-01-01 00:00:00.000000');
CREATE TABLE blob (
	sha256 VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_blob PRIMARY KEY (sha256)
);
INSERT INTO "blob" VALUES('abababababababababababababababababababababababababababababababab',1,'2026-01-01 00:00:00.000000');
CREATE TABLE calibration (
	id VARCHAR(40) NOT NULL, 
	device TEXT NOT NULL, 
	base_id VARCHAR(64) NOT NULL, 
	model_ids JSON NOT NULL, 
	agent_id VARCHAR(40), 
	state VARCHAR(16) NOT NULL, 
	desired VARCHAR(8) NOT NULL, 
	stage TEXT, 
	progress_done BIGINT NOT NULL, 
	progress_total BIGINT NOT NULL, 
	"table" JSON, 
	report JSON, 
	device_id VARCHAR(64), 
	problem JSON, 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_calibration PRIMARY KEY (id), 
	CONSTRAINT fk_calibration_agent_id_agent FOREIGN KEY(agent_id) REFERENCES agent (id)
);
INSERT INTO "calibration" VALUES('calibration_id','calibration_device','calibration_base_id','[]',NULL,'ready','run',NULL,1,1,NULL,NULL,NULL,NULL,'2026-01-01 00:00:00.000000',NULL,NULL,'calibration_owner_id');
CREATE TABLE candidate (
	id VARCHAR(40) NOT NULL, 
	search_id VARCHAR(40) NOT NULL, 
	trial_idx BIGINT NOT NULL, 
	rank BIGINT NOT NULL, 
	assignment JSON NOT NULL, 
	costs JSON NOT NULL, 
	metrics JSON NOT NULL, 
	layers JSON NOT NULL, 
	budget JSON NOT NULL, 
	feasible BOOLEAN NOT NULL, 
	verification VARCHAR(16) NOT NULL, 
	report JSON, 
	export_state VARCHAR(16), 
	problem JSON, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_candidate PRIMARY KEY (id), 
	CONSTRAINT fk_candidate_search_id_search FOREIGN KEY(search_id) REFERENCES search (id) ON DELETE CASCADE, 
	CONSTRAINT uq_candidate_search_id_trial_idx UNIQUE (search_id, trial_idx)
);
INSERT INTO "candidate" VALUES('candidate_id','search_id',1,1,'{}','{}','{}','[]','[]',1,'candidate_verification',NULL,NULL,NULL,'2026-01-01 00:00:00.000000');
CREATE TABLE dataset (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	blob_sha VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	spec JSON NOT NULL, 
	info JSON, 
	problem JSON, 
	created_at DATETIME NOT NULL, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_dataset PRIMARY KEY (id), 
	CONSTRAINT fk_dataset_blob_sha_blob FOREIGN KEY(blob_sha) REFERENCES blob (sha256)
);
INSERT INTO "dataset" VALUES('dataset_id','dataset_name','abababababababababababababababababababababababababababababababab',1,'ready','{}',NULL,NULL,'2026-01-01 00:00:00.000000','dataset_owner_id');
CREATE TABLE "device" (
	id VARCHAR(64) NOT NULL, 
	name TEXT NOT NULL, 
	revision BIGINT NOT NULL, 
	builtin BOOLEAN NOT NULL, 
	profile JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	owner_id VARCHAR(40), 
	CONSTRAINT pk_device PRIMARY KEY (id), 
	CONSTRAINT uq_device_owner_id_name_revision UNIQUE (owner_id, name, revision)
);
INSERT INTO "device" VALUES('device_id','device_name',1,1,'{}','2026-01-01 00:00:00.000000',NULL);
CREATE TABLE enrolment (
	sha256 VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME NOT NULL, 
	used_at DATETIME, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_enrolment PRIMARY KEY (sha256)
);
INSERT INTO "enrolment" VALUES('abababababababababababababababababababababababababababababababab','2026-01-01 00:00:00.000000','2026-01-01 00:00:00.000000',NULL,'enrolment_owner_id');
CREATE TABLE evaluation (
	"key" TEXT NOT NULL, 
	measurement JSON NOT NULL, 
	created_at DATETIME NOT NULL, context VARCHAR(64), fidelity VARCHAR(16), repair VARCHAR(32), assignment JSON, 
	CONSTRAINT pk_evaluation PRIMARY KEY ("key")
);
INSERT INTO "evaluation" VALUES('evaluation_key','{}','2026-01-01 00:00:00.000000',NULL,NULL,NULL,NULL);
CREATE TABLE event (
	search_id VARCHAR(40) NOT NULL, 
	seq BIGINT NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	payload JSON NOT NULL, 
	at DATETIME NOT NULL, 
	CONSTRAINT pk_event PRIMARY KEY (search_id, seq), 
	CONSTRAINT fk_event_search_id_search FOREIGN KEY(search_id) REFERENCES search (id) ON DELETE CASCADE
);
INSERT INTO "event" VALUES('search_id',1,'event_kind','{}','2026-01-01 00:00:00.000000');
CREATE TABLE fleet (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	spec JSON NOT NULL, 
	created_at DATETIME NOT NULL, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_fleet PRIMARY KEY (id)
);
INSERT INTO "fleet" VALUES('fleet_id','fleet_name','{}','2026-01-01 00:00:00.000000','fleet_owner_id');
CREATE TABLE idempotency (
	key_id VARCHAR(40) NOT NULL, 
	route TEXT NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	status BIGINT, 
	location TEXT, 
	body JSON, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_idempotency PRIMARY KEY (key_id, route, "key")
);
INSERT INTO "idempotency" VALUES('idempotency_key_id','idempotency_route','idempotency_key','idempotency_digest',NULL,NULL,NULL,'2026-01-01 00:00:00.000000');
CREATE TABLE measuring (
	id VARCHAR(40) NOT NULL, 
	agent_id VARCHAR(40) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	items JSON NOT NULL, 
	rounds BIGINT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	"key" VARCHAR(64), 
	session TEXT, 
	lease_until DATETIME, 
	attempt BIGINT NOT NULL, 
	results JSON NOT NULL, 
	conditions JSON, 
	problem JSON, 
	created_at DATETIME NOT NULL, 
	finished_at DATETIME, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_measuring PRIMARY KEY (id), 
	CONSTRAINT fk_measuring_agent_id_agent FOREIGN KEY(agent_id) REFERENCES agent (id), 
	CONSTRAINT uq_measuring_key UNIQUE ("key")
);
INSERT INTO "measuring" VALUES('measuring_id','agent_id','measuring_kind','[]',1,'ready',NULL,NULL,NULL,1,'{}',NULL,NULL,'2026-01-01 00:00:00.000000',NULL,'measuring_owner_id');
CREATE TABLE model (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	format TEXT NOT NULL, 
	blob_sha VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	graph JSON, 
	problem JSON, 
	created_at DATETIME NOT NULL, base_id VARCHAR(40) CONSTRAINT fk_model_base_id_model REFERENCES model (id), weights_sha VARCHAR(64) CONSTRAINT fk_model_weights_sha_blob REFERENCES blob (sha256), weights_bytes BIGINT, warnings JSON, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_model PRIMARY KEY (id), 
	CONSTRAINT fk_model_blob_sha_blob FOREIGN KEY(blob_sha) REFERENCES blob (sha256)
);
INSERT INTO "model" VALUES('model_id','model_name','model_format','abababababababababababababababababababababababababababababababab',1,'ready',NULL,NULL,'2026-01-01 00:00:00.000000',NULL,NULL,NULL,NULL,'model_owner_id');
CREATE TABLE prediction (
	search_id VARCHAR(40) NOT NULL, 
	number BIGINT NOT NULL, 
	assignment JSON NOT NULL, 
	costs JSON NOT NULL, 
	loss DOUBLE NOT NULL, accuracy DOUBLE, metrics JSON, 
	CONSTRAINT pk_prediction PRIMARY KEY (search_id, number), 
	CONSTRAINT fk_prediction_search_id_search FOREIGN KEY(search_id) REFERENCES search (id) ON DELETE CASCADE
);
INSERT INTO "prediction" VALUES('search_id',1,'{}','{}',1.0,NULL,NULL);
CREATE TABLE runner (
	search_id VARCHAR(40) NOT NULL, 
	slot BIGINT NOT NULL, 
	token TEXT NOT NULL, 
	seen_at DATETIME NOT NULL, starts BIGINT DEFAULT '1' NOT NULL, 
	CONSTRAINT pk_runner PRIMARY KEY (search_id, slot), 
	CONSTRAINT fk_runner_search_id_search FOREIGN KEY(search_id) REFERENCES search (id) ON DELETE CASCADE
);
INSERT INTO "runner" VALUES('search_id',1,'runner_token','2026-01-01 00:00:00.000000',1);
CREATE TABLE schedule (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	cron TEXT NOT NULL, 
	timezone TEXT NOT NULL, 
	template JSON NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	last_fired_at DATETIME, 
	last_search_id TEXT, 
	problem JSON, 
	created_at DATETIME NOT NULL, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_schedule PRIMARY KEY (id)
);
INSERT INTO "schedule" VALUES('schedule_id','schedule_name','schedule_cron','schedule_timezone','{}',1,NULL,NULL,NULL,'2026-01-01 00:00:00.000000','schedule_owner_id');
CREATE TABLE search (
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	model_id VARCHAR(40) NOT NULL, 
	dataset JSON NOT NULL, 
	device_id VARCHAR(64) NOT NULL, 
	device JSON NOT NULL, 
	spec JSON NOT NULL, 
	limits JSON NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	stage TEXT, 
	outcome TEXT, 
	progress_done BIGINT NOT NULL, 
	progress_total BIGINT NOT NULL, 
	eta_s DOUBLE, 
	event_seq BIGINT NOT NULL, 
	baseline JSON, 
	best JSON, 
	sensitivity JSON, 
	desired VARCHAR(8) NOT NULL, 
	error JSON, 
	slice BIGINT NOT NULL, 
	schedule_id VARCHAR(40), 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, measured JSON, finisher TEXT, warm JSON, reachable JSON, fleet_id VARCHAR(40), place BIGINT, provenance JSON, training JSON, priority BIGINT DEFAULT '3' NOT NULL, turn BIGINT, owner_id VARCHAR(40), extended JSON, paused_at DATETIME, paused_s DOUBLE DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_search PRIMARY KEY (id), 
	CONSTRAINT fk_search_model_id_model FOREIGN KEY(model_id) REFERENCES model (id)
);
INSERT INTO "search" VALUES('search_id','search_name','model_id','{}','search_device_id','{}','{}','{}','ready',NULL,NULL,1,1,NULL,1,NULL,NULL,NULL,'run',NULL,1,NULL,'2026-01-01 00:00:00.000000',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,NULL,NULL,NULL,NULL,1.0);
CREATE TABLE timing (
	id VARCHAR(40) NOT NULL, 
	search_id VARCHAR(40) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	device_id VARCHAR(64) NOT NULL, 
	profile_sha VARCHAR(64) NOT NULL, 
	modelled_ms DOUBLE NOT NULL, 
	latency JSON NOT NULL, 
	beside JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_timing PRIMARY KEY (id), 
	CONSTRAINT fk_timing_search_id_search FOREIGN KEY(search_id) REFERENCES search (id) ON DELETE CASCADE, 
	CONSTRAINT uq_timing_search_id_digest UNIQUE (search_id, digest)
);
INSERT INTO "timing" VALUES('timing_id','search_id','timing_digest','timing_device_id','timing_profile_sha',1.0,'{}','{}','2026-01-01 00:00:00.000000');
CREATE TABLE trial (
	id VARCHAR(40) NOT NULL, 
	search_id VARCHAR(40) NOT NULL, 
	idx BIGINT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempt BIGINT NOT NULL, 
	owner_token TEXT, 
	kind TEXT NOT NULL, 
	params JSON, 
	assignment JSON, 
	costs JSON, 
	metrics JSON, 
	sampler_attrs JSON, 
	failure JSON, 
	violation DOUBLE, 
	feasible BOOLEAN, 
	seconds DOUBLE, 
	created_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	CONSTRAINT pk_trial PRIMARY KEY (id), 
	CONSTRAINT fk_trial_search_id_search FOREIGN KEY(search_id) REFERENCES search (id) ON DELETE CASCADE, 
	CONSTRAINT uq_trial_search_id_idx UNIQUE (search_id, idx)
);
INSERT INTO "trial" VALUES('trial_id','search_id',1,'ready',1,NULL,'trial_kind',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'2026-01-01 00:00:00.000000',NULL);
CREATE TABLE upload (
	id VARCHAR(40) NOT NULL, 
	key_id VARCHAR(40) NOT NULL, 
	length BIGINT NOT NULL, 
	"offset" BIGINT NOT NULL, 
	wish JSON NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	location TEXT, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME NOT NULL, owner_id VARCHAR(40) DEFAULT 'default' NOT NULL, 
	CONSTRAINT pk_upload PRIMARY KEY (id)
);
INSERT INTO "upload" VALUES('upload_id','upload_key_id',1,1,'{}','ready',NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:00:00.000000','upload_owner_id');
CREATE TABLE worker (
	executor_id TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid BIGINT NOT NULL, 
	started_at DATETIME NOT NULL, 
	last_seen DATETIME NOT NULL, 
	info JSON NOT NULL, 
	CONSTRAINT pk_worker PRIMARY KEY (executor_id)
);
INSERT INTO "worker" VALUES('worker_executor_id','worker_host',1,'2026-01-01 00:00:00.000000','2026-01-01 00:00:00.000000','{}');
CREATE INDEX ix_idempotency_created_at ON idempotency (created_at);
CREATE INDEX ix_search_model_id ON search (model_id);
CREATE INDEX ix_search_schedule_id ON search (schedule_id);
CREATE INDEX ix_search_state ON search (state);
CREATE INDEX ix_model_base_id ON model (base_id);
CREATE INDEX ix_measuring_agent_id ON measuring (agent_id);
CREATE INDEX ix_calibration_agent_id ON calibration (agent_id);
CREATE INDEX ix_timing_profile_sha ON timing (profile_sha);
CREATE INDEX ix_evaluation_context_fidelity ON evaluation (context, fidelity);
CREATE INDEX ix_search_fleet_id ON search (fleet_id);
CREATE INDEX ix_upload_expires_at ON upload (expires_at);
CREATE INDEX ix_model_owner_id_id ON model (owner_id, id);
CREATE INDEX ix_dataset_owner_id_id ON dataset (owner_id, id);
CREATE INDEX ix_fleet_owner_id_id ON fleet (owner_id, id);
CREATE INDEX ix_schedule_owner_id_id ON schedule (owner_id, id);
CREATE INDEX ix_agent_owner_id_id ON agent (owner_id, id);
CREATE INDEX ix_measuring_owner_id_id ON measuring (owner_id, id);
CREATE INDEX ix_calibration_owner_id_id ON calibration (owner_id, id);
CREATE INDEX ix_search_owner_id_id ON search (owner_id, id);
CREATE INDEX ix_device_owner_id_id ON device (owner_id, id);
COMMIT;
